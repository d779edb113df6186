"""The Triton kernels of attention without a GPU: interpreted, and compiled for sm_90."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

import triton_program
from thinkfirst.kernels import placement
from thinkfirst.kernels.flash_attention import api, gpu

# A bfloat16 kernel against the float32 reference: a rounding of weights and of score gradients, one of the result.
BOUND = {"float32": 2e-6, "bfloat16": 8e-3}


@pytest.mark.long
def test_equals_the_reference_under_the_interpreter():
    rows = triton_program.run("flash_attention.py", "parity")
    assert len(rows) == 11
    for row in rows:
        for name in ("context", "query", "key", "value"):
            assert row[name] <= BOUND[row["dtype"]], row


@pytest.mark.long
def test_compiles_for_hopper_without_spills():
    rows = triton_program.run("flash_attention.py", "resources")
    assert len(rows) == 12
    for row in rows:
        triton_program.check_resources(row)
    assert all(row["wgmma"] for row in rows if row["dtype"] == "bfloat16")


def test_tiles_of_other_segments_are_out_of_bounds():
    segment = jnp.asarray([[1] * 4 + [2] * 5, [1] * 2 + [2] * 2 + [3] * 3 + [0] * 2])
    # Tiles of two queries against tiles of four keys; a tile that holds ids 3 and 0 may hold any id between.
    np.testing.assert_array_equal(gpu.first_seen(segment, 2, 4), [[0, 0, 4, 4, 4], [0, 0, 4, 0, 4]])
    np.testing.assert_array_equal(gpu.last_seen(segment, 4, 2), [[4, 9, 9], [8, 9, 9]])


def test_packed_texts_read_their_own_tiles_only():
    """Four texts of 512 in 2,048."""
    segment = jnp.arange(2048)[None, :] // 512
    first = np.asarray(gpu.first_seen(segment, 128, 64))[0]
    np.testing.assert_array_equal(first, np.arange(16) // 4 * 512)
    last = np.asarray(gpu.last_seen(segment, 64, 32))[0]
    np.testing.assert_array_equal(last, np.arange(32) // 8 * 512 + 512)


def test_odd_widths_are_refused():
    x = jnp.ones((1, 2, 1, 48))
    with pytest.raises(ValueError, match="width of a head"):
        gpu.attention(x, x, x, jnp.ones((1, 2), int), scale=1.0, window=0, soft_cap=0.0)


@pytest.mark.parametrize(("width", "kernel"), [(64, True), (48, False)])
def test_auto_takes_the_kernel_where_it_supports_the_shape(width, kernel, monkeypatch):
    x, segment = jnp.ones((1, 2, 1, width)), jnp.ones((1, 2), int)
    taken = []
    monkeypatch.setattr(placement, "takes_triton", lambda backend, supported: backend == "auto" and supported)
    monkeypatch.setattr(gpu, "attention", lambda *operands, **settings: taken.append(settings) or operands[0])
    api.attention(x, x, x, segment, scale=1.0, window=1, soft_cap=2.0)
    assert taken == [{"scale": 1.0, "window": 1, "soft_cap": 2.0}] * kernel
    api.attention(x, x, x, segment, scale=1.0, backend="reference")
    assert len(taken) == kernel


def test_a_gpu_asked_for_where_there_is_none_is_refused():
    x = jnp.ones((1, 2, 1, 64))
    with pytest.raises(ValueError, match="backend gpu needs a GPU; this is cpu"):
        api.attention(x, x, x, jnp.ones((1, 2), int), scale=1.0, backend="gpu")


def test_importing_needs_no_triton():
    assert "triton" not in sys.modules
    assert "jax_triton" not in sys.modules
