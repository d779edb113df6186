"""What the program being traced will run on, and whether a Mosaic or a Triton kernel can stand there.

Inside a `shard_map` the devices of its mesh decide, so that a program compiled for a chip that is not there takes the
kernels of that chip; elsewhere JAX's default device does.
"""

import importlib.util

import jax
from jax.sharding import AxisType

HOPPER = "9.0"  # the compute capability that the tiles of the Triton kernels are cut for


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


def triton_problem() -> str:
    """Why no Triton kernel can run here; empty if one can."""
    if platform() != "gpu":
        return f"needs a GPU; this is {platform()}"
    if importlib.util.find_spec("jax_triton") is None:
        return "needs jax-triton, which is not installed: pip install 'thinkfirst[gpu]'"
    return ""


def takes_triton(backend: str, *, supported: bool) -> bool:
    """Whether a call runs its Triton kernel: asked for by name, or by "auto" on a Hopper GPU on whole operands.

    ValueError where it was asked for and cannot run; what it cannot run *on* the kernel says itself.
    """
    problem = triton_problem()
    if backend == "gpu" and problem:
        raise ValueError(f"backend gpu {problem}")
    if backend == "auto":
        return not problem and supported and whole() and jax.devices()[0].compute_capability == HOPPER
    return backend == "gpu"
