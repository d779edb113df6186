"""Gemma 2 and 3 and their adapters are those of Tunix and Qwix: logits, log-probs, greedy continuations, gradients.

The golden files come from tests/golden/make_tunix.py; `make parity` makes others, of other weights.
"""

import os
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stepwise
import tolerance
import tunix_names
from thinkfirst.kernels.token_logprob import api as token_logprob
from thinkfirst.kernels.token_logprob import reference as logprob_reference
from thinkfirst.models import gemma, lora

pytestmark = pytest.mark.slow
GOLDEN = pathlib.Path(os.environ.get("THINKFIRST_GOLDEN", pathlib.Path(__file__).resolve().parents[1] / "golden"))
LOGITS, GRADIENT = 2e-5, 1e-4  # largest difference, as a part of the largest value
TEMPERATURE = 0.7
SCALE = 8.0 / 4


@pytest.fixture(scope="module", params=list(tunix_names.CONFIGS))
def case(request):
    """Tunix's weights in our tree, Qwix's factors, and what they computed."""
    model, held = gemma.Model(tunix_names.CONFIGS[request.param]), dict(np.load(GOLDEN / f"{request.param}.npz"))
    params, factors = tunix_names.params(model, held), tunix_names.factors(held, "lora")
    return types.SimpleNamespace(model=model, params=params, factors=factors, golden=held)


def adapter(case, factors):
    return tunix_names.adapter(case.model, factors, scale=SCALE)


def hidden(case, added):
    """(hidden states of the golden tokens, where there are any)"""
    tokens_BT, length_B = case.golden["tokens_BT"], case.golden["length_B"]
    segment_BT = (np.arange(tokens_BT.shape[1]) < length_B[:, None]).astype(np.int32)
    run = jax.jit(case.model.hidden)
    return run(case.params, jnp.asarray(tokens_BT), segment_BT=jnp.asarray(segment_BT), adapter=added), segment_BT > 0


def logits(case, hidden_TD):
    return logprob_reference.logits(hidden_TD, case.params["embedding"], case.model.config.final_soft_cap)


def next_logp(case, added):
    hidden_BTD, valid_BT = hidden(case, added)
    next_BT = jnp.asarray(case.golden["tokens_BT"][:, 1:])
    logp_BT, _ = token_logprob.token_logprob(
        hidden_BTD[:, :-1],
        case.params["embedding"],
        next_BT,
        jnp.full(next_BT.shape, -jnp.inf),
        temperature=jnp.float32(TEMPERATURE),
        soft_cap=case.model.config.final_soft_cap,
    )
    return logp_BT[valid_BT[:, 1:]]


@pytest.mark.parametrize("name", ["logit_TV", "lora_TV"])
def test_logits_with_and_without_the_adapter(case, name):
    hidden_BTD, valid_BT = hidden(case, adapter(case, case.factors) if name == "lora_TV" else None)
    tolerance.assert_near(logits(case, hidden_BTD[valid_BT]), case.golden[name], part=LOGITS)


def test_logits_after_merging(case):
    merged = lora.merge(case.params, adapter(case, case.factors), case.model.adapted())
    hidden_BTD, valid_BT = hidden(types.SimpleNamespace(**vars(case) | {"params": merged}), None)
    tolerance.assert_near(logits(case, hidden_BTD[valid_BT]), case.golden["lora_TV"], part=LOGITS)


@pytest.mark.parametrize("name", ["next_logp_T", "lora_next_logp_T"])
def test_log_probs_at_a_temperature(case, name):
    added = adapter(case, case.factors) if name == "lora_next_logp_T" else None
    tolerance.assert_near(next_logp(case, added), case.golden[name], part=LOGITS)


def test_gradients_of_the_factors(case):
    gradient = jax.jit(jax.grad(lambda factors: -next_logp(case, adapter(case, factors)).mean()))(case.factors)
    theirs = {name.removeprefix("gradient/"): array for name, array in case.golden.items() if "gradient/" in name}
    assert len(theirs) >= 4
    for name, expected in theirs.items():
        tolerance.assert_near(gradient[name], expected, part=GRADIENT)


def test_greedy_continuations_with_the_adapter(case):
    added, greedy_PT = adapter(case, case.factors), case.golden["greedy_BT"]
    length_P = jnp.asarray(case.golden["prompt_length_B"])
    room = int(length_P.max())
    prompt_PT = jnp.asarray(case.golden["tokens_BT"][: len(length_P), :room])
    rows, found = stepwise.Decoder((case.model, case.params, added), prompt_PT, length_P, new=greedy_PT.shape[1]), []
    for _ in range(greedy_PT.shape[1]):
        logit_PV = logits(case, rows.hidden_BD).at[:, 0].set(-jnp.inf)  # to Tunix id 0 is padding wherever it stands
        found.append(jnp.argmax(logit_PV, axis=1).astype(jnp.int32))
        rows.step(found[-1])
    np.testing.assert_array_equal(jnp.stack(found, axis=1), greedy_PT)
