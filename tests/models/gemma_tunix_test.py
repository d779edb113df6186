"""Gemma 2 and 3 and their adapters are those of Tunix and Qwix: logits, log-probs, greedy continuations, gradients.

The golden files come from tests/golden/make_tunix.py; `make parity` makes others, of other weights.
"""

import os
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stepwise
import tolerance
from thinkfirst.kernels.token_logprob import api as token_logprob
from thinkfirst.kernels.token_logprob import reference as logprob_reference
from thinkfirst.models import config, gemma, layout, lora

pytestmark = pytest.mark.slow
GOLDEN = pathlib.Path(os.environ.get("THINKFIRST_GOLDEN", pathlib.Path(__file__).resolve().parents[1] / "golden"))
LOGITS, GRADIENT = 2e-5, 1e-4  # largest difference, as a part of the largest value
TEMPERATURE = 0.7
SIZES = {
    "vocab_size": 40,
    "width": 12,
    "ff_width": 10,
    "num_heads": 4,
    "head_dim": 8,
    "window": 6,
    "query_scalar": 8,  # Tunix knows no other than head_dim
    "dtype": "float32",
}
CONFIGS = {
    "tunix_gemma2": config.GemmaConfig(
        **SIZES,
        generation=2,
        num_layers=3,
        num_kv_heads=2,
        pattern=config.GEMMA2_PATTERN,
        attention_soft_cap=5.0,
        final_soft_cap=6.0,
    ),
    "tunix_gemma3": config.GemmaConfig(
        **SIZES,
        generation=3,
        num_layers=7,
        num_kv_heads=1,
        pattern=config.GEMMA3_PATTERN,
        global_rope_base=1_000_000.0,
        global_rope_factor=8.0,
    ),
}
# Our weight -> Qwix's name of it and, where two of ours are one of its, the place in B.
QWIX = {
    "query": ("attn.q_einsum.w", None),
    "key": ("attn.kv_einsum.w", 0),
    "value": ("attn.kv_einsum.w", 1),
    "output": ("attn.attn_vec_einsum.w", None),
    "gate": ("mlp.gate_proj.kernel", None),
    "up": ("mlp.up_proj.kernel", None),
    "down": ("mlp.down_proj.kernel", None),
}


def leaves(model):
    gating = model.config.generation == 3
    return layout.flax(model.config, model.letters(), transposed_gating=gating)


def load(model, tensors):
    """Parameters from Flax-named tensors."""
    params, size = {}, layout.sizes(model.config)
    for leaf in leaves(model):
        rows = [
            tensors[stored.name] if stored.part is None else tensors[stored.name][stored.part] for stored in leaf.stored
        ]
        rows = [
            layout.to_ours(row, stored.axes, leaf.letters, size) for row, stored in zip(rows, leaf.stored, strict=True)
        ]
        layout.put(params, leaf.path, jnp.asarray(np.stack(rows) if leaf.stacked else rows[0]))
    return params


def adapter(model, factors):
    """Qwix's factors, of all layers in one array, as an adapter of ours."""
    tree, adapted = {}, model.adapted()
    for leaf in leaves(model):
        if leaf.path[:-1] in adapted:
            name, part = QWIX[leaf.path[-2]]
            layers = np.array([int(re.search(r"layer_(\d+)", stored.name)[1]) for stored in leaf.stored])
            a, b = (factors[f"{{}}.{name}_lora_{half}"][layers] for half in "ab")
            layout.put(tree, leaf.path[:-1], {"a": a, "b": b if part is None else b[:, :, part]})
    return lora.Adapter(factors=tree, scale=8.0 / 4)


@pytest.fixture(scope="module", params=list(CONFIGS))
def case(request):
    """Tunix's weights in our tree, Qwix's factors, and what they computed."""
    model, held = gemma.Model(CONFIGS[request.param]), dict(np.load(GOLDEN / f"{request.param}.npz"))
    stacks = {name: array for name, array in held.items() if name.startswith("transformer/")}
    tensors = {name: array for name, array in stacks.items() if "{}" not in name}
    for name in stacks.keys() - tensors.keys():
        tensors |= {name.format(layer): row for layer, row in enumerate(stacks[name])}
    factors = {name.removeprefix("lora/"): jnp.asarray(held[name]) for name in held if name.startswith("lora/")}
    return types.SimpleNamespace(model=model, params=load(model, tensors), factors=factors, golden=held)


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
    hidden_BTD, valid_BT = hidden(case, adapter(case.model, case.factors) if name == "lora_TV" else None)
    tolerance.assert_near(logits(case, hidden_BTD[valid_BT]), case.golden[name], part=LOGITS)


def test_logits_after_merging(case):
    merged = lora.merge(case.params, adapter(case.model, case.factors), case.model.adapted())
    hidden_BTD, valid_BT = hidden(types.SimpleNamespace(**vars(case) | {"params": merged}), None)
    tolerance.assert_near(logits(case, hidden_BTD[valid_BT]), case.golden["lora_TV"], part=LOGITS)


@pytest.mark.parametrize("name", ["next_logp_T", "lora_next_logp_T"])
def test_log_probs_at_a_temperature(case, name):
    added = adapter(case.model, case.factors) if name == "lora_next_logp_T" else None
    tolerance.assert_near(next_logp(case, added), case.golden[name], part=LOGITS)


def test_gradients_of_the_factors(case):
    gradient = jax.jit(jax.grad(lambda factors: -next_logp(case, adapter(case.model, factors)).mean()))(case.factors)
    theirs = {name.removeprefix("gradient/"): array for name, array in case.golden.items() if "gradient/" in name}
    assert len(theirs) >= 4
    for name, expected in theirs.items():
        tolerance.assert_near(gradient[name], expected, part=GRADIENT)


def test_greedy_continuations_with_the_adapter(case):
    added, greedy_PT = adapter(case.model, case.factors), case.golden["greedy_BT"]
    length_P = jnp.asarray(case.golden["prompt_length_B"])
    room = int(length_P.max())
    prompt_PT = jnp.asarray(case.golden["tokens_BT"][: len(length_P), :room])
    rows, found = stepwise.Decoder((case.model, case.params, added), prompt_PT, length_P, new=greedy_PT.shape[1]), []
    for _ in range(greedy_PT.shape[1]):
        logit_PV = logits(case, rows.hidden_BD).at[:, 0].set(-jnp.inf)  # to Tunix id 0 is padding wherever it stands
        found.append(jnp.argmax(logit_PV, axis=1).astype(jnp.int32))
        rows.step(found[-1])
    np.testing.assert_array_equal(jnp.stack(found, axis=1), greedy_PT)
