"""The Triton kernel of decoding without a GPU: interpreted, and compiled for sm_90."""

import jax.numpy as jnp
import pytest

import triton_program
from thinkfirst.kernels import placement
from thinkfirst.kernels.decode_attention import api, gpu

BOUND = {"float32": 2e-6, "bfloat16": 8e-3}  # rounded: weights, result


@pytest.mark.long
def test_equals_the_reference_under_the_interpreter():
    rows = triton_program.run("decode_attention.py", "parity")
    assert len(rows) == 10
    for row in rows:
        assert row["context"] <= BOUND[row["dtype"]], row
        assert row["same_cache"], row


@pytest.mark.long
def test_compiles_for_hopper_without_spills():
    rows = triton_program.run("decode_attention.py", "resources")
    assert len(rows) == 8
    for row in rows:
        triton_program.check_resources(row)


QUERY, NEW, RING = jnp.ones((2, 2, 16)), (jnp.ones((2, 1, 16)),) * 2, (jnp.ones((3, 2, 5, 1, 16)),) * 2
LAYER, POSITION = jnp.int32(0), jnp.array([1, 2])
PROMPT = {"prompt": (jnp.ones((3, 2, 4, 1, 16)),) * 2, "length_P": jnp.array([4, 4]), "group_B": jnp.array([1, 0])}


def append_attention(**rest):
    return api.append_attention(QUERY, NEW, RING, LAYER, POSITION, scale=1.0, **rest)


def grouped(**rest):
    return api.grouped(QUERY, NEW, RING, LAYER, POSITION, **PROMPT, scale=1.0, **rest)


@pytest.mark.parametrize("program", [append_attention, grouped])
def test_auto_takes_the_kernel(program, monkeypatch):
    taken = []
    monkeypatch.setattr(placement, "takes_triton", lambda backend, supported: backend == "auto" and supported)
    monkeypatch.setattr(gpu, program.__name__, lambda *_, **settings: taken.append(settings) or (QUERY, RING))
    program()
    assert taken[0]["scale"] == 1.0
    if program is grouped:
        assert taken[0]["group_B"].tolist() == [1, 0]
    program(backend="reference")
    assert len(taken) == 1


@pytest.mark.parametrize("program", [append_attention, grouped])
def test_a_gpu_asked_for_where_there_is_none_is_refused(program):
    with pytest.raises(ValueError, match="backend gpu needs a GPU; this is cpu"):
        program(backend="gpu")


def test_odd_widths_are_refused():
    query, ring, new = jnp.ones((2, 2, 48)), (jnp.ones((3, 2, 5, 1, 48)),) * 2, (jnp.ones((2, 1, 48)),) * 2
    with pytest.raises(ValueError, match="width of a head"):
        gpu.append_attention(query, new, ring, LAYER, POSITION, scale=1.0, window=0, soft_cap=0.0)
