"""A kernel is taken only where XLA has nothing to partition."""

import importlib.util
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from thinkfirst.core import mesh
from thinkfirst.kernels import placement


def test_whole_operands_are_seen_inside_a_map_over_every_axis(monkeypatch):
    grid = mesh.make(mesh.MeshConfig(data=2, fsdp=2, tensor=2))
    seen = []

    def look(x):
        seen.append(placement.whole())
        return x

    rows = PartitionSpec(mesh.BATCH_AXES)
    settings = {"mesh": grid, "in_specs": rows, "out_specs": rows, "check_vma": False}
    jax.jit(look)(jnp.ones(8))
    jax.jit(jax.shard_map(look, axis_names=set(mesh.BATCH_AXES), **settings))(jnp.ones(8))
    jax.jit(jax.shard_map(look, **settings))(jnp.ones(8))
    assert seen == [False, False, True]
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert placement.whole()


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_only_a_tpu_runs_them(backend, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert placement.kernels_run() == (backend == "tpu")


def test_the_mesh_says_what_a_program_is_compiled_for():
    slice_mesh = mesh.make(mesh.MeshConfig(data=4, tensor=2), mesh.described("v5e:2x4"))
    seen = []

    def look(x):
        seen.append((placement.platform(), placement.device_kind(), placement.kernels_run()))
        return x

    rows = PartitionSpec(mesh.BATCH_AXES)
    jax.jit(jax.shard_map(look, mesh=slice_mesh, in_specs=rows, out_specs=rows, check_vma=False)).trace(jnp.ones(8))
    jax.jit(look).trace(jnp.ones(8))
    assert seen == [("tpu", "TPU v5 lite", True), ("cpu", "cpu", False)]


@pytest.fixture
def hopper(monkeypatch):
    """One H100, with jax-triton installed."""
    device = types.SimpleNamespace(compute_capability="9.0")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there" if name == "jax_triton" else find(name))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    return device


def test_a_triton_kernel_is_taken_on_a_gpu_that_it_is_cut_for(hopper, monkeypatch):
    assert placement.takes_triton("auto", supported=True)
    assert placement.takes_triton("gpu", supported=True)
    assert not placement.takes_triton("reference", supported=True)
    assert not placement.takes_triton("auto", supported=False)
    assert placement.takes_triton("gpu", supported=False)  # the kernel says what is wrong
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not placement.takes_triton("auto", supported=True)


def test_another_gpu_runs_them_when_asked_for_by_name_only(hopper):
    hopper.compute_capability = "8.9"
    assert not placement.takes_triton("auto", supported=True)
    assert placement.takes_triton("gpu", supported=True)


def test_without_jax_triton_a_gpu_takes_the_reference(hopper, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not placement.takes_triton("auto", supported=True)
    with pytest.raises(ValueError, match=r"backend gpu needs jax-triton, which is not installed: pip install"):
        placement.takes_triton("gpu", supported=True)


def test_a_gpu_asked_for_where_there_is_none_is_refused():
    assert not placement.takes_triton("auto", supported=True)
    with pytest.raises(ValueError, match="backend gpu needs a GPU; this is cpu"):
        placement.takes_triton("gpu", supported=True)
