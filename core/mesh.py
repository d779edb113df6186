"""The mesh: axes `data` (copies), `fsdp` (copies that each keep a slice of the weights), `tensor` (split layers).

Rows of a batch are spread over data and fsdp together; a tensor group works on the same rows.
"""

import dataclasses
import math

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

BATCH_AXES = ("data", "fsdp")
TENSOR_AXIS = "tensor"
AXES = (*BATCH_AXES, TENSOR_AXIS)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the axes; one of them may be -1, "whatever devices are left"."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (or those given), its axes handled by the compiler (Auto)."""
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh sizes must be positive, at most one of them -1: {config}")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if len(devices) % known:
            raise ValueError(f"{config}: {len(devices)} devices cannot be split into groups of {known}")
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise ValueError(f"{config} asks for {math.prod(sizes)} devices, there are {len(devices)}")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def described(topology: str) -> list[jax.Device]:
    """Devices of a TPU slice that is not there, e.g. "v5e:2x4": programs compile for them, and do not run.

    The TPU compiler is libtpu's; a process that asks for it needs ALLOW_MULTIPLE_LIBTPU_LOAD=1 where another one may.
    """
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ValueError(f"no TPU slice {topology!r}, or no libtpu to compile for it: {error}") from error


def num_row_shards(mesh: Mesh) -> int:
    """How many parts the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)
