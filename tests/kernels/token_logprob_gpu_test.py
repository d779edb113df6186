"""The Triton kernels of token log-probabilities without a GPU: interpreted, and compiled for sm_90."""

import jax
import jax.numpy as jnp
import pytest

import triton_program
from thinkfirst.kernels import placement
from thinkfirst.kernels.token_logprob import api, gpu

# The logit gradients of the workspace are rounded to bfloat16, and so is the result.
GRADIENT_BOUND = {"float32": 2e-6, "bfloat16": 5e-3}


@pytest.mark.long
def test_equals_the_reference_under_the_interpreter():
    rows = triton_program.run("token_logprob.py", "parity")
    assert len(rows) == 7
    for row in rows:
        assert row["logp"] <= 1e-5, row
        assert row["entropy"] <= 1e-5, row
        assert row["gradient"] <= GRADIENT_BOUND[row["dtype"]], row
        assert row.get("table_gradient", 0.0) <= GRADIENT_BOUND[row["dtype"]], row


@pytest.mark.long
def test_compiles_for_hopper_without_spills():
    rows = triton_program.run("token_logprob.py", "resources")
    assert len(rows) == 8
    for row in rows:
        triton_program.check_resources(row)
    assert all(row["wgmma"] for row in rows if row["dtype"] == "bfloat16")


@pytest.mark.long
def test_the_workspace_is_of_one_chunk_of_tokens():
    assert triton_program.run("token_logprob.py", "workspace") == [{"whole": False, "chunk": True}]


def test_auto_takes_the_kernel_and_tells_it_what_is_static(monkeypatch):
    hidden, table, token = jnp.ones((2, 3, 8)), jnp.ones((5, 8)), jnp.zeros((2, 3), jnp.int32)
    floor, temperature = jnp.zeros((2, 3)), jnp.float32(1.0)
    taken = []

    def kernel(settings, hidden_TD, *_, temperature):
        taken.append((settings, hidden_TD.shape))
        return jnp.arange(6.0), jnp.arange(6.0)

    monkeypatch.setattr(placement, "takes_triton", lambda backend, supported: backend == "auto" and supported)
    monkeypatch.setattr(gpu, "token_logprob", kernel)
    found, _ = api.token_logprob(hidden, table, token, floor, temperature=temperature, soft_cap=3.0, truncated=False)
    assert found.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert taken == [(gpu.Settings(soft_cap=3.0, truncated=False), (6, 8))]
    api.token_logprob(hidden, table, token, floor, temperature=temperature, backend="reference")
    assert len(taken) == 1


def test_a_gpu_asked_for_where_there_is_none_is_refused():
    hidden, table, token = jnp.ones((2, 3, 8)), jnp.ones((5, 8)), jnp.zeros((2, 3), jnp.int32)
    with pytest.raises(ValueError, match="backend gpu needs a GPU; this is cpu"):
        api.token_logprob(hidden, table, token, jnp.zeros((2, 3)), temperature=jnp.float32(1.0), backend="gpu")


@pytest.mark.parametrize(
    ("wanted", "axis_name", "complaint"),
    [(2, None, "no gradient with respect to the temperature"), (1, "tensor", "a table that is sharded over 'tensor'")],
)
def test_a_gradient_that_there_is_none_of_is_refused(wanted, axis_name, complaint, monkeypatch):
    """Before anything is launched."""
    monkeypatch.setattr(gpu, "_launch", lambda *_, **__: pytest.fail("launched"))
    settings = gpu.Settings(soft_cap=0.0, truncated=False, axis_name=axis_name)

    def total(hidden_TD, table_VD, temperature):
        rest = jnp.zeros(3, jnp.int32), jnp.zeros(3)
        return gpu.token_logprob(settings, hidden_TD, table_VD, *rest, temperature=temperature)[0].sum()

    run = jax.grad(total, argnums=wanted)
    if axis_name:
        run = jax.vmap(run, (None, 0, None), axis_name=axis_name)
    with pytest.raises(ValueError, match=complaint):
        run(jnp.ones((3, 8)), jnp.ones((2, 5, 8)) if axis_name else jnp.ones((5, 8)), jnp.float32(1.0))
