"""The window kernel, interpreted on a CPU with poisoned memory and race detection, against the float32 reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import slices
import tolerance
from thinkfirst.kernels.flash_attention import cases_window, reference, window

STRICT = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise")


def operands(length, heads, groups, *, width=64, dtype="float32", batch=1, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, n, width) for n in (heads, groups, groups, heads)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def runs(length, *lengths_and_ids):
    """Segment ids [1, T] of runs given as (tokens, id); the last run fills the row."""
    ids = np.concatenate([np.full(tokens, segment) for tokens, segment in lengths_and_ids])[:length]
    return jnp.asarray(np.pad(ids, (0, length - len(ids)), mode="edge")[None])


def both(query, key, value, dcontext, segment, **settings):
    """Context and the three gradients by the kernel, and by the reference in float32."""
    found, pull = jax.vjp(lambda *x: window.attention(*x, segment, **settings, interpret=STRICT), query, key, value)
    exact, pull_exact = jax.vjp(
        lambda *x: reference.attention(*x, segment, **settings), *(x.astype(jnp.float32) for x in (query, key, value))
    )
    return (found, *pull(dcontext)), (exact, *pull_exact(dcontext.astype(jnp.float32)))


def expect_equal(arrays, segment, capfd, *, slack=1.0, **settings):
    for found, exact in zip(*both(*arrays, segment, **settings), strict=True):
        assert found.dtype == arrays[0].dtype
        tolerance.assert_close(np.asarray(found.astype(jnp.float32)).astype(found.dtype), exact, slack=slack)
    assert "RACE" not in "".join(capfd.readouterr()).upper()


SEGMENTS = {
    "one": lambda length: runs(length, (1, 7)),
    "many": lambda length: runs(length, (length // 3, 1), (length // 4, 2), (1, 3)),
    "padded": lambda length: runs(length, (length // 2, 1), (1, 0)),
    "empty": lambda length: runs(length, (1, 0)),
    "returning": lambda length: runs(length, (length // 3, 2), (length // 3, 1), (1, 2)),
}


@pytest.mark.parametrize(
    ("length", "window", "soft_cap", "heads", "groups", "segments"),
    [
        (1, 4, 0.0, 1, 1, "one"),
        (63, 20, 2.0, 2, 1, "many"),
        (127, 500, 0.0, 2, 2, "padded"),
    ],
)
def test_one_tile(capfd, *, length, window, soft_cap, heads, groups, segments):
    arrays = operands(length, heads, groups)
    expect_equal(arrays, SEGMENTS[segments](length), capfd, scale=0.2, window=window, soft_cap=soft_cap)


# 257 tokens are 3 blocks of one tile, 600 are 5 of one, 512 and 1,000 are 2 and 4 of two: these are float32.
@pytest.mark.long
@pytest.mark.parametrize(
    ("length", "window", "soft_cap", "heads", "groups", "segments"),
    [
        (257, 0, 0.0, 2, 1, "one"),
        (512, 511, 0.0, 4, 1, "many"),
        (257, 1, 2.0, 1, 1, "empty"),
        (600, 130, 3.0, 2, 1, "returning"),
        (512, 512, 0.0, 2, 2, "many"),
        (1000, 384, 0.0, 2, 2, "one"),
    ],
)
def test_many_tiles(capfd, *, length, window, soft_cap, heads, groups, segments):
    arrays = operands(length, heads, groups)
    expect_equal(arrays, SEGMENTS[segments](length), capfd, scale=0.2, window=window, soft_cap=soft_cap)


@pytest.mark.long
def test_bfloat16(capfd):
    arrays = operands(1024, 2, 1, width=128, dtype="bfloat16")
    # Weights and score gradients are rounded to bfloat16 before a product over up to 512 keys: errors add up.
    expect_equal(arrays, SEGMENTS["many"](1024), capfd, slack=2.0, scale=0.1, window=512, soft_cap=4.0)


@pytest.mark.long
def test_rows_of_a_batch_do_not_mix(capfd):
    arrays = operands(257, 2, 1, batch=2)
    segment = jnp.concatenate([SEGMENTS["many"](257), SEGMENTS["empty"](257)])
    expect_equal(arrays, segment, capfd, scale=0.2, window=150, soft_cap=0.0)


@pytest.mark.long
def test_keys_of_another_segment_are_not_read():
    """Blocks that share no segment are skipped: NaN in them, which a mask alone would let through, stays there."""
    query, key, value, _ = operands(512, 1, 1)
    segment = runs(512, (256, 1), (1, 2))
    poisoned = value.at[:, :256].set(jnp.nan)
    found = window.attention(query, key, poisoned, segment, scale=0.2, window=300, soft_cap=0.0, interpret=STRICT)
    exact = reference.attention(query, key, value, segment, scale=0.2, window=300, soft_cap=0.0)
    tolerance.assert_close(found[:, 256:], exact[:, 256:])


def test_what_does_not_fit_is_refused():
    query, key, value, _ = operands(2048, 1, 1)
    segment = runs(2048, (1, 1))
    with pytest.raises(ValueError, match=r"window=1026"):
        window.attention(query, key, value, segment, scale=1.0, window=1026, soft_cap=0.0)
    with pytest.raises(ValueError, match="dtypes differ"):
        window.attention(query, key.astype("bfloat16"), value, segment, scale=1.0, window=9, soft_cap=0.0)
    assert window.supports(2048, 256, 512)
    assert window.supports(1152, 256, 4096)
    assert not window.supports(2048, 512, 512)


TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x4"}


@pytest.mark.long
@pytest.mark.parametrize("chip", ["v4", "v5p", "v6e"])  # v5e is below, with its memory
def test_compiles_for_gemma_3_1b(chip, monkeypatch):
    slices.compiled(TOPOLOGIES[chip], *cases_window.forward_and_backward())


@pytest.mark.long
@pytest.mark.parametrize(
    ("chip", "length", "heads", "groups", "width", "span", "soft_cap", "dtype"),
    [
        ("v6e", 1024, 8, 4, 256, 4096, 50.0, "bfloat16"),  # Gemma 2 2B, a text shorter than its window
        ("v4", 2048, 8, 4, 256, 1024, 0.0, "bfloat16"),  # Gemma 3 4B, where VMEM is smallest
        ("v5e", 1000, 4, 1, 256, 512, 0.0, "float32"),
        ("v5p", 640, 2, 1, 64, 300, 0.0, "bfloat16"),
    ],
)
def test_compiles(*, chip, length, heads, groups, width, span, soft_cap, dtype, monkeypatch):
    query, key = (jax.ShapeDtypeStruct((1, length, n, width), dtype) for n in (heads, groups))
    segment = jax.ShapeDtypeStruct((1, length), jnp.int32)
    settings = {"scale": 0.0625, "window": span, "soft_cap": soft_cap}

    def gradients(query, key, value, segment):
        return jax.grad(lambda *x: window.attention(*x, segment, **settings).sum(dtype=jnp.float32), argnums=(0, 1, 2))(
            query, key, value
        )

    slices.compiled(TOPOLOGIES[chip], gradients, (query, key, key, segment))


@pytest.mark.long
def test_no_large_array_besides_the_results(monkeypatch):
    memory = slices.compiled(TOPOLOGIES["v5e"], *cases_window.forward_and_backward(batch=8)).memory_analysis()
    assert memory.temp_size_in_bytes <= 2**20
    assert memory.peak_memory_in_bytes - memory.argument_size_in_bytes - memory.output_size_in_bytes <= 2**20
