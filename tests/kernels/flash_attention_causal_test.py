"""Causal attention for TPU, interpreted: equal to the reference, forward and gradient, from memory full of NaN."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import slices
import tolerance
from thinkfirst.kernels.flash_attention import cases_causal, causal, causal_plan, reference

INTERPRET = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True, dma_execution_mode="on_wait")
TINY = 1e-4  # of float32: the largest difference forward, and of a gradient that is zero by its norm
RELATIVE = {"float32": 1e-3, "bfloat16": tolerance.TOLERANCE["bfloat16"]["rtol"]}  # of a gradient, by its norm


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks in a short text."""
    monkeypatch.setattr(causal_plan, "BLOCKS", (128,))


def draw(length, heads=1, groups=1, *, width=8, batch=1, dtype="float32"):
    """Query, key, value and an upstream gradient."""
    rng = np.random.default_rng(length + heads)
    return [jnp.asarray(rng.normal(size=(batch, length, n, width)), dtype) for n in (heads, groups, groups, heads)]


def packed(*lengths):
    return jnp.asarray(np.repeat(np.arange(1, len(lengths) + 1), lengths))[None]


def check(operands, segment, capfd, **settings):
    """Kernel and float32 reference give the same context and the same gradients, and no read overtakes a write."""
    settings = {"scale": 0.3, "window": 0, "soft_cap": 0.0} | settings
    *inputs, upstream = operands
    dtype = upstream.dtype.name

    def kernel(*qkv):
        return causal.attention(*qkv, segment, interpret=INTERPRET, **settings)

    def exact(*qkv):
        return reference.attention(*qkv, segment, **settings)

    def both(function, inputs, upstream):
        context, pull = jax.vjp(function, *inputs)
        return context, pull(upstream)

    quickly = jax.jit(functools.partial(both, kernel), compiler_options={"xla_backend_optimization_level": 0})
    context, gradients = quickly(inputs, upstream)
    precise = [x.astype(jnp.float32) for x in inputs]
    expected, expected_gradients = both(exact, precise, upstream.astype(jnp.float32))
    if dtype == "float32":
        assert float(jnp.abs(context - expected).max()) <= TINY
    else:
        tolerance.assert_close(np.asarray(context), np.asarray(expected))
    for found, wanted, operand in zip(gradients, expected_gradients, inputs, strict=True):
        assert found.dtype == operand.dtype
        gap = jnp.linalg.norm(found.astype(jnp.float32) - wanted)
        assert float(gap) <= RELATIVE[dtype] * float(jnp.linalg.norm(wanted)) + TINY
    assert "race" not in capfd.readouterr().out.lower()


def test_a_row_in_two_blocks(capfd):
    check(draw(256), jnp.ones((1, 256), int), capfd)


@pytest.mark.long
@pytest.mark.parametrize("length", [1, 63, 127, 512, 1000])
def test_any_length(length, capfd, monkeypatch):
    if length == 1000:
        monkeypatch.setattr(causal_plan, "BLOCKS", (256,))
    check(draw(length), jnp.ones((1, length), int), capfd)


@pytest.mark.long
@pytest.mark.parametrize("window", [1, 128, 129, 500])
def test_any_window(window, capfd):
    check(draw(300), packed(170, 130), capfd, window=window)


@pytest.mark.long
@pytest.mark.parametrize(
    ("heads", "groups", "soft_cap"), [(2, 2, 0.0), (2, 2, 5.0), (4, 2, 0.0), (4, 2, 70.0), (4, 1, 0.0), (4, 1, 2.0)]
)
def test_any_heads_and_soft_cap(heads, groups, soft_cap, capfd):
    check(draw(200, heads, groups), packed(150, 50), capfd, soft_cap=soft_cap)


@pytest.mark.long
@pytest.mark.parametrize("soft_cap", [0.0, 5.0])
def test_bfloat16(soft_cap, capfd):
    check(draw(256, 4, 2, width=128, dtype="bfloat16"), packed(100, 156), capfd, soft_cap=soft_cap)


@pytest.mark.long
def test_many_texts_in_rows_packed_differently(capfd):
    rows = [np.repeat([1, 2, 3, 0], [128, 5, 200, 51]), np.repeat([7, 3, 7], [130, 120, 134]), np.zeros(384)]
    check(draw(384, batch=3), jnp.asarray(np.stack(rows).astype(np.int32)), capfd)


@pytest.mark.long
def test_scores_far_apart(capfd):
    """A running maximum that rises and falls from block to block."""
    query, key, value, upstream = draw(384)
    key = key * jnp.asarray(np.repeat([1.0, 40.0, 3.0], 128), jnp.float32)[None, :, None, None]
    check([query, key, value, upstream], jnp.ones((1, 384), int), capfd)


def visited(segment, length, **settings):
    """The pairs of query block and key block that are not skipped."""
    query, key, *_ = draw(length)
    defaults = {"scale": 1.0, "soft_cap": 0.0, "window": 0, "vmem": 2**26, "interpret": True, "first": ()}
    plan = causal_plan.make(query, key, prologue=False, epsilon=0.0, **(defaults | settings))
    first = plan.first_blocks(segment)
    row, rows = jnp.int32(0), range(plan.blocks)
    return {(i, j) for i in rows for j in range(int(plan.first_key_block(first, row, jnp.int32(i))), i + 1)}


def test_blocks_without_a_pair_are_skipped():
    whole = {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}
    one_text = jnp.ones((1, 384), jnp.int32)
    assert visited(one_text, 384) == whole
    assert visited(packed(128, 128, 128).astype(jnp.int32), 384) == {(0, 0), (1, 1), (2, 2)}
    assert visited(packed(128, 129, 127).astype(jnp.int32), 384) == {(0, 0), (1, 1), (2, 1), (2, 2)}
    assert visited(one_text, 384, window=129) == whole - {(2, 0)}
    assert visited(one_text, 384, window=130) == whole
    assert visited(one_text, 384, first=(0, 1, 2)) == {(0, 0), (1, 1), (2, 2)}


def test_a_table_known_beforehand_gives_the_same():
    *inputs, _ = draw(256)
    segment = packed(128, 128)
    read, fixed = (causal.attention(*inputs, segment, scale=0.3, interpret=True, first=first) for first in ((), (0, 1)))
    np.testing.assert_array_equal(np.asarray(read), np.asarray(fixed))


def test_what_does_not_fit_is_refused():
    *inputs, _ = draw(256)
    segment = jnp.ones((1, 256), int)
    with pytest.raises(ValueError, match="256 tokens of 1 heads are too many"):
        causal.attention(*inputs, segment, scale=1.0, vmem=2**20)
    with pytest.raises(ValueError, match="float16"):
        causal.attention(*(x.astype(jnp.float16) for x in inputs), segment, scale=1.0)


@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="left out: the real TPU compiler; install libtpu")
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
@pytest.mark.parametrize("shape", ["GEMMA_3_1B", "GEMMA_2_2B"])
def test_compiles_for_a_tpu_without_partial_sums_in_memory(topology, shape, monkeypatch):
    monkeypatch.setattr(causal_plan, "BLOCKS", (512, 256, 128))
    on_chip = {"vmem": 2**24} if topology.startswith("v4") else {}
    function, operands = cases_causal.backward(*getattr(cases_causal, shape), batch=8, **on_chip)
    compiled = slices.compiled(topology, function, operands)
    assert compiled.memory_analysis().temp_size_in_bytes <= 20 * 2**20
