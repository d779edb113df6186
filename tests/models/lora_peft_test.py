"""Adapters are those of Hugging Face's PEFT: applied, merged, and the gradients of their factors.

The golden files come from tests/golden/make_peft.py; `make parity` makes others, of other weights.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import checkpoints
import tolerance
from thinkfirst.kernels.token_logprob import reference as logprob_reference
from thinkfirst.models import lora, peft

LOGITS, GRADIENT = 2e-5, 1e-4  # largest difference, as a part of the largest value


@pytest.fixture(
    scope="module", params=[("peft_gemma2", "hf_gemma2"), ("peft_gemma3", "hf_gemma3")], ids=lambda names: names[0]
)
def case(request):
    """An adapter folder of PEFT on a base, both opened by us, and what PEFT computed from it."""
    name, base = request.param
    model, params = checkpoints.opened(base)
    golden = dict(np.load(checkpoints.GOLDEN / f"{name}.npz"))
    segment_BT = (np.arange(golden["tokens_BT"].shape[1]) < golden["length_B"][:, None]).astype(np.int32)
    adapter = jax.tree.map(jnp.asarray, peft.load(checkpoints.GOLDEN / name, model))
    return types.SimpleNamespace(
        model=model, params=params, adapter=adapter, golden=golden, segment_BT=segment_BT, name=name
    )


def logits(case, params, added):
    """[B, T, V] of the golden tokens."""
    tokens_BT, segment_BT = jnp.asarray(case.golden["tokens_BT"]), jnp.asarray(case.segment_BT)
    hidden_BTD = case.model.hidden(params, tokens_BT, segment_BT=segment_BT, adapter=added)
    flat_TD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    logit_TV = logprob_reference.logits(flat_TD, params["embedding"], case.model.config.final_soft_cap)
    return logit_TV.reshape(*tokens_BT.shape, -1)


def test_logits_with_the_adapter_on(case):
    found_BTV = jax.jit(lambda params, added: logits(case, params, added))(case.params, case.adapter)
    tolerance.assert_near(found_BTV[case.segment_BT > 0], case.golden["applied_TV"], part=LOGITS)


def test_logits_after_merging(case):
    merged = lora.merge(case.params, case.adapter, case.model.adapted())
    found_BTV = jax.jit(lambda params: logits(case, params, None))(merged)
    tolerance.assert_near(found_BTV[case.segment_BT > 0], case.golden["merged_TV"], part=LOGITS)


def test_gradients_of_the_factors(case, tmp_path):
    valid_BT, tokens_BT = jnp.asarray(case.segment_BT[:, 1:] > 0), jnp.asarray(case.golden["tokens_BT"])

    def loss(added, params):
        logp_BTV = jax.nn.log_softmax(logits(case, params, added))[:, :-1]
        logp_BT = jnp.take_along_axis(logp_BTV, tokens_BT[:, 1:, None], axis=2)[:, :, 0]
        return -jnp.where(valid_BT, logp_BT, 0).sum() / valid_BT.sum().astype(jnp.float32)

    gradient = jax.jit(jax.grad(loss))(case.adapter, case.params)
    peft.save(tmp_path, case.model, gradient, base="")  # under PEFT's names
    found = safetensors.numpy.load_file(tmp_path / peft.TENSORS_NAME)
    expected = {name.removeprefix("gradient/"): array for name, array in case.golden.items() if "gradient/" in name}
    assert len(expected) >= 4
    for name, wanted in expected.items():
        tolerance.assert_near(found[name], wanted, part=GRADIENT)
