"""Adapters are those of Hugging Face's PEFT: applied, merged, and the gradients of their factors.

The golden files come from tests/golden/make_peft.py; `make parity` makes others, of other weights.
"""

import json
import math
import os
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import tolerance
from thinkfirst.kernels.token_logprob import reference as logprob_reference
from thinkfirst.models import config, gemma, layout, lora, weights

GOLDEN = pathlib.Path(os.environ.get("THINKFIRST_GOLDEN", pathlib.Path(__file__).resolve().parents[1] / "golden"))
LOGITS, GRADIENT = 2e-5, 1e-4  # largest difference, as a part of the largest value


def load(name):
    """The model and the parameters of a golden checkpoint."""
    model = gemma.Model(config.read(GOLDEN / name))
    return model, jax.tree.map(jnp.asarray, weights.load(GOLDEN / name, model))


def places(model):
    """(path of a factor, row, PEFT's name, axes there, axes of ours) of every tensor an adapter can have.

    PEFT keeps A as [R, in] and B as [out, R], where Hugging Face's weight is [out, in], such as "(NH)D".
    """
    adapted = model.adapted()
    for leaf in layout.huggingface(model.config, model.letters()):
        path = leaf.path[:-1]
        if path in adapted:
            letters = lora.split(adapted[path][0])
            for row, stored in enumerate(leaf.stored):
                name = f"base_model.model.{stored.name.removesuffix('.weight')}"
                cut = stored.axes.find(")") + 1 if stored.axes.startswith("(") else 1
                out_axes, in_axes = stored.axes[:cut], stored.axes[cut:]
                yield (*path, "a"), row, f"{name}.lora_A.weight", f"R{in_axes}", f"{letters.contracted}R"
                yield (*path, "b"), row, f"{name}.lora_B.weight", f"{out_axes}R", f"R{letters.produced}"


def adapter(model, tensors, settings):
    """PEFT's tensors as an adapter of ours; what it does not adapt has no factors."""
    rank = settings["r"]
    rows, tree, size = {}, {}, layout.sizes(model.config) | {"R": rank}
    for path, _, name, theirs, ours in places(model):
        if name in tensors:
            rows.setdefault(path, []).append(layout.to_ours(tensors[name], theirs, ours, size))
    for path, stack in rows.items():
        layout.put(tree, path, jnp.stack(stack))
    return lora.Adapter(tree, settings["lora_alpha"] / (math.sqrt(rank) if settings["use_rslora"] else rank))


@pytest.fixture(
    scope="module", params=[("peft_gemma2", "hf_gemma2"), ("peft_gemma3", "hf_gemma3")], ids=lambda names: names[0]
)
def case(request):
    """An adapter folder of PEFT on a base opened by us, and what PEFT computed from it."""
    name, base = request.param
    model, params = load(base)
    settings = json.loads((GOLDEN / name / "adapter_config.json").read_text())
    tensors = safetensors.numpy.load_file(GOLDEN / name / "adapter_model.safetensors")
    golden = dict(np.load(GOLDEN / f"{name}.npz"))
    segment_BT = (np.arange(golden["tokens_BT"].shape[1]) < golden["length_B"][:, None]).astype(np.int32)
    return types.SimpleNamespace(
        model=model,
        params=params,
        rank=settings["r"],
        names=set(tensors),
        adapter=adapter(model, tensors, settings),
        golden=golden,
        segment_BT=segment_BT,
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
    paths = {path[:-1] for path, _, name, *_ in places(case.model) if name in case.names}
    specs = {path: spec for path, spec in case.model.adapted().items() if path in paths}
    merged = lora.merge(case.params, case.adapter, specs)
    found_BTV = jax.jit(lambda params: logits(case, params, None))(merged)
    tolerance.assert_near(found_BTV[case.segment_BT > 0], case.golden["merged_TV"], part=LOGITS)


def test_gradients_of_the_factors(case):
    valid_BT, tokens_BT = jnp.asarray(case.segment_BT[:, 1:] > 0), jnp.asarray(case.golden["tokens_BT"])

    def loss(added, params):
        logp_BTV = jax.nn.log_softmax(logits(case, params, added))[:, :-1]
        logp_BT = jnp.take_along_axis(logp_BTV, tokens_BT[:, 1:, None], axis=2)[:, :, 0]
        return -jnp.where(valid_BT, logp_BT, 0).sum() / valid_BT.sum().astype(jnp.float32)

    gradient = jax.jit(jax.grad(loss))(case.adapter, case.params).factors
    expected = {name.removeprefix("gradient/"): array for name, array in case.golden.items() if "gradient/" in name}
    assert len(expected) >= 4
    size = layout.sizes(case.model.config) | {"R": case.rank}
    for path, row, name, theirs, ours in places(case.model):
        if name in expected:
            wanted = layout.to_ours(expected.pop(name), theirs, ours, size)
            tolerance.assert_near(layout.at(gradient, path)[row], wanted, part=GRADIENT)
    assert not expected
