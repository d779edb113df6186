"""Two tables from dimension letters to mesh axes: where weights (and what is trained) live, how work is spread."""

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from thinkfirst.core import mesh as mesh_lib

# A weight keeps a slice of D on every fsdp device and whole heads / columns / vocabulary rows on every tensor device.
PARAMETER_RULES: dict[str, str] = {"D": "fsdp", "N": "tensor", "K": "tensor", "F": "tensor", "V": "tensor"}
PLACED_BYTES = 2**30  # the most that `place` asks for at once
# A device works on its rows, with its heads and its part of the vocabulary.
WORK_RULES: dict[str, tuple[str, ...]] = {
    "B": mesh_lib.BATCH_AXES,
    "P": mesh_lib.BATCH_AXES,
    "N": (mesh_lib.TENSOR_AXIS,),
    "K": (mesh_lib.TENSOR_AXIS,),
    "V": (mesh_lib.TENSOR_AXIS,),
}
REPLICATED_IF_UNEVEN = "K"  # Gemma 3 1B has one key/value head: every tensor device keeps it


def parameter_spec(letters: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where each axis of a weight lives; an axis its mesh axis does not divide is an error, but for K.

    A small letter is an axis counted in blocks (models/quantised.py): it goes with its axis where it divides too.
    """
    axes: list[str | None] = []
    for letter, size in zip(letters, shape, strict=True):
        axis = PARAMETER_RULES.get(letter.upper())
        if axis and size % mesh.shape[axis]:
            if letter not in REPLICATED_IF_UNEVEN and letter.isupper():
                raise ValueError(f"{letter}={size} of a weight {letters} is not divisible by {axis}={mesh.shape[axis]}")
            axis = None
        axes.append(axis)
    return PartitionSpec(*axes)


def parameters(letters: Any, shapes: Any, mesh: Mesh) -> Any:
    """NamedSharding for every leaf of a tree, from the matching trees of letters and of arrays (or shapes)."""
    return jax.tree.map(lambda text, leaf: NamedSharding(mesh, parameter_spec(text, leaf.shape, mesh)), letters, shapes)


def place(
    shape: tuple[int, ...],
    dtype: np.dtype,
    layout: NamedSharding,
    read: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
    """An array whose parts come from `read(slices)`, straight to the device each belongs on.

    The host holds one part at a time, and of a part above a gigabyte a few rows of its first axis.  Each process reads
    what its own devices keep.
    """
    parts = []
    for device, index in layout.addressable_devices_indices_map(shape).items():
        assert index is not None
        bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
        inner = tuple(slice(*bound) for bound in bounds[1:])
        (first, last), row_bytes = bounds[0], dtype.itemsize * math.prod(stop - start for start, stop in bounds[1:])
        step = max(1, PLACED_BYTES // max(1, row_bytes))
        pieces = [
            jax.device_put(read((slice(begin, min(begin + step, last)), *inner)), device).block_until_ready()
            for begin in range(first, last, step)
        ]
        parts.append(pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces))
    return jax.make_array_from_single_device_arrays(shape, layout, parts)


def work_spec(letters: str, *, axes: Collection[str] = mesh_lib.AXES, whole: str = "") -> PartitionSpec:
    """How an array is spread over `axes` by WORK_RULES; letters in `whole` are not."""
    spread = [() if letter in whole else WORK_RULES.get(letter, ()) for letter in letters]
    return PartitionSpec(*(tuple(axis for axis in names if axis in axes) or None for names in spread))


def per_device(
    function: Callable[..., Any], mesh: Mesh | None, operands: Sequence[Any], results: Any, *, whole: str = ""
) -> Callable[..., Any]:
    """`function` as every device runs it on its part, all axes of the mesh being mapped by hand.

    `operands` and `results` are trees of letters, e.g. ("BTNH", ("LBSKH", "LBSKH")): a letter is spread by WORK_RULES
    unless it is among `whole`.  Inside a `shard_map` only the axes that it leaves are mapped; without a mesh, none.
    """
    around = jax.sharding.get_abstract_mesh()
    mapped = {name for name, kind in zip(around.axis_names, around.axis_types, strict=True) if kind == AxisType.Manual}
    left = set() if mesh is None else set(mesh.axis_names) - mapped
    if not left:
        return function

    spec = functools.partial(work_spec, axes=left, whole=whole)
    return jax.shard_map(
        function,
        mesh=None if mapped else mesh,
        in_specs=jax.tree.map(spec, tuple(operands)),
        out_specs=jax.tree.map(spec, results),
        axis_names=left,
        check_vma=False,
    )


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """A tree of values that every process has, random keys too, on all devices of the mesh."""
    layout = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, layout)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jax.device_put(np.asarray(jax.random.key_data(leaf)), layout)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(np.asarray(leaf), layout)

    return jax.tree.map(put, tree)


def spread(tree: Any, mesh: Mesh) -> Any:
    """Arrays of the host with their rows spread over the mesh: each process feeds the rows of its own devices.

    All processes have the same arrays; nobody compares them, as `jax.device_put` would.
    """
    layout = rows(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, layout)

    def put(leaf: Any) -> jax.Array:
        value = np.asarray(leaf)
        places = layout.addressable_devices_indices_map(value.shape)
        parts = [jax.device_put(value[index], device) for device, index in places.items()]
        return jax.make_array_from_single_device_arrays(value.shape, layout, parts)

    return jax.tree.map(put, tree)


def rows_spec() -> PartitionSpec:
    """First axis spread over the batch axes of the mesh."""
    return PartitionSpec(mesh_lib.BATCH_AXES)


def replicated_spec() -> PartitionSpec:
    """The same value everywhere."""
    return PartitionSpec()


def rows(mesh: Mesh) -> NamedSharding:
    """First axis spread over the batch axes of the mesh."""
    return NamedSharding(mesh, rows_spec())


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, replicated_spec())
