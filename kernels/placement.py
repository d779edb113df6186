"""What the program being traced will run on, and whether a Mosaic kernel can stand there.

Inside a `shard_map` the devices of its mesh decide, so that a program compiled for a chip that is not there takes the
kernels of that chip; elsewhere JAX's default device does.
"""

import jax
from jax.sharding import AxisType


def platform() -> str:
    """ "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """The chip by JAX's name, e.g. "TPU v5 lite"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def whole() -> bool:
    """Whether what is traced now sees whole operands: one device, or a `shard_map` over every axis of its mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    return all(kind == AxisType.Manual for kind in mesh.axis_types)


def kernels_run() -> bool:
    """Whether backend "auto" may take a TPU kernel here; XLA cannot partition one."""
    return platform() == "tpu" and whole()
