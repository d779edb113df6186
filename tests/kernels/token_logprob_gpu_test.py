"""The Triton kernels of token log-probabilities without a GPU: interpreted, and compiled for sm_90."""

import pytest

import triton_program

pytestmark = pytest.mark.slow
# The logit gradients of the workspace are rounded to bfloat16, and so is the result.
GRADIENT_BOUND = {"float32": 2e-6, "bfloat16": 5e-3}


def test_equals_the_reference_under_the_interpreter():
    rows = triton_program.run("token_logprob.py", "parity")
    assert len(rows) == 6
    for row in rows:
        assert row["logp"] <= 1e-5, row
        assert row["entropy"] <= 1e-5, row
        assert row["gradient"] <= GRADIENT_BOUND[row["dtype"]], row


def test_compiles_for_hopper_without_spills():
    rows = triton_program.run("token_logprob.py", "resources")
    assert len(rows) == 8
    for row in rows:
        triton_program.check_resources(row)
    assert all(row["wgmma"] for row in rows if row["dtype"] == "bfloat16")


def test_the_workspace_is_of_one_chunk_of_tokens():
    assert triton_program.run("token_logprob.py", "workspace") == [{"whole": False, "chunk": True}]
