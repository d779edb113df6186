import dataclasses
import typing

import jax
import jax.numpy as jnp
import pytest

from thinkfirst.kernels.cost import flops
from thinkfirst.models import config, gemma, lora, remat

LAYERS = 4
MODEL = gemma.Model(dataclasses.replace(config.demo_gemma3(), num_layers=LAYERS))
SPECS = MODEL.adapted()
ROWS, LENGTH = 4, 512  # four parts of the feed-forward


def trace(name):
    """(FLOPs of the gradient, bytes kept for it) under a policy."""
    adapter = jax.eval_shape(lambda key: lora.init(SPECS, key, rank=4, alpha=4.0), jax.random.key(0))
    tokens_BT = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)

    def total(adapter, params, tokens_BT):
        segment_BT = jnp.ones_like(tokens_BT)
        return MODEL.hidden(params, tokens_BT, segment_BT=segment_BT, adapter=adapter, remat=name).sum()

    gradient = jax.jit(jax.grad(total)).trace(adapter, MODEL.shapes(), tokens_BT)
    kept = jax.eval_shape(lambda a, *rest: jax.vjp(lambda a: total(a, *rest), a)[1], adapter, MODEL.shapes(), tokens_BT)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    return flops.count(gradient.jaxpr.jaxpr), size


def test_policies_are_in_order_of_memory_and_of_what_is_computed_again():
    found = [trace(name) for name in remat.NAMES]
    work, kept = zip(*found, strict=True)
    assert list(kept) == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)
    assert list(work[:-1]) == sorted(work[:-1])
    products = 2 * ROWS * LENGTH * MODEL.config.width * MODEL.config.ff_width
    again = dict(zip(remat.NAMES, work, strict=True))
    second_factor = 2 * ROWS * LENGTH * 4 * MODEL.config.ff_width  # of rank 4; the first is computed again anyway
    assert again["gate"] - again["products"] == LAYERS * (products + second_factor)


def test_an_unknown_policy_lists_the_known():
    with pytest.raises(ValueError, match="remat='half': there is auto, none, products, gate"):
        remat.check("half")


def test_a_stage_may_ask_for_any_policy():
    assert typing.get_args(remat.Setting) == ("auto", *remat.NAMES)
