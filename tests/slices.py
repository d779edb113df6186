"""Programs for TPU slices that are not there: operands as shapes laid out on a described mesh."""

import functools

import jax
import pytest

from thinkfirst.core import mesh, sharding
from thinkfirst.models import gemma, lora


@functools.cache
def layout(topology, *, data=-1, fsdp=1, tensor=1):
    """A mesh over the devices of a slice, e.g. "v5e:2x4"."""
    return mesh.make(mesh.MeshConfig(data=data, fsdp=fsdp, tensor=tensor), mesh.described(topology))


def cpu():
    """A mesh over the CPU devices of this process."""
    return mesh.make(mesh.MeshConfig())


def single(topology):
    """The layout of arrays on the first device of a slice."""
    return jax.sharding.SingleDeviceSharding(mesh.described(topology)[0])


def compiled(topology, function, shapes):
    """The executable that the TPU's own compiler makes of a function for one device of a slice."""
    pytest.importorskip("libtpu", reason="left out: compiling for TPUs; pip install libtpu")
    return jax.jit(function).lower(*on(list(shapes), single(topology))).compile()


def on(shapes, shardings):
    """A tree of shapes, each with its sharding (one for all, or a tree of them)."""
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings), shapes)
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    return jax.tree.map(place, shapes, shardings)


def policy(config, devices, *, rank=16):
    """(model, parameters, adapter) as shapes on the mesh."""
    model = gemma.Model(config, devices)
    shapes, specs = model.shapes(), model.adapted()
    params = on(shapes, sharding.parameters(model.letters(), shapes, devices))
    factors = jax.eval_shape(lambda key: lora.init(specs, key, rank=rank, alpha=float(rank)), jax.random.key(0))
    return model, params, on(factors, sharding.parameters(lora.letters(specs, factors), factors, devices))
