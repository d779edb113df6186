"""The Triton kernel of decoding without a GPU: interpreted, and compiled for sm_90."""

import pytest

import triton_program

pytestmark = pytest.mark.slow
BOUND = {"float32": 2e-6, "bfloat16": 8e-3}  # rounded: weights, result


def test_equals_the_reference_under_the_interpreter():
    rows = triton_program.run("decode_attention.py", "parity")
    assert len(rows) == 6
    for row in rows:
        assert row["context"] <= BOUND[row["dtype"]], row


def test_compiles_for_hopper_without_spills():
    rows = triton_program.run("decode_attention.py", "resources")
    assert len(rows) == 4
    for row in rows:
        triton_program.check_resources(row)
