"""One table from dimension letters to mesh axes: weights, adapters and optimiser state are all laid out by it."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from thinkfirst.core import mesh as mesh_lib

# A weight keeps a slice of D on every fsdp device and whole heads / columns / vocabulary rows on every tensor device.
PARAMETER_RULES: dict[str, str] = {"D": "fsdp", "N": "tensor", "K": "tensor", "F": "tensor", "V": "tensor"}
REPLICATED_IF_UNEVEN = "K"  # Gemma 3 1B has one key/value head: every tensor device keeps it


def parameter_spec(letters: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where each axis of a weight lives; an axis its mesh axis does not divide is an error, but for K."""
    axes: list[str | None] = []
    for letter, size in zip(letters, shape, strict=True):
        axis = PARAMETER_RULES.get(letter)
        if axis and size % mesh.shape[axis]:
            if letter not in REPLICATED_IF_UNEVEN:
                raise ValueError(f"{letter}={size} of a weight {letters} is not divisible by {axis}={mesh.shape[axis]}")
            axis = None
        axes.append(axis)
    return PartitionSpec(*axes)


def parameters(letters: Any, shapes: Any, mesh: Mesh) -> Any:
    """NamedSharding for every leaf of a tree, from the matching trees of letters and of arrays (or shapes)."""
    return jax.tree.map(lambda text, leaf: NamedSharding(mesh, parameter_spec(text, leaf.shape, mesh)), letters, shapes)


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
