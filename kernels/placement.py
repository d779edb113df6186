"""Where a Mosaic kernel can stand: on a TPU, where XLA has nothing left to partition."""

import jax
from jax.sharding import AxisType


def whole() -> bool:
    """Whether what is traced now sees whole operands: one device, or a `shard_map` over every axis of its mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    return all(kind == AxisType.Manual for kind in mesh.axis_types)


def kernels_run() -> bool:
    """Whether backend "auto" may take a TPU kernel here; XLA cannot partition one."""
    return jax.default_backend() == "tpu" and whole()
