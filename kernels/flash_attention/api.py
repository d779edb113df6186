"""Attention of training and prefill: checks, then the implementation.

Of the two kernels `window` is for windows much shorter than the text, `causal` for all else.
"""

from typing import Any, Literal

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from thinkfirst.kernels import placement
from thinkfirst.kernels.flash_attention import causal, gpu, reference
from thinkfirst.kernels.flash_attention import window as window_kernel

Backend = Literal["auto", "reference", "tpu", "tpu_interpret", "gpu"]


def attention(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segment_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    backend: Backend = "auto",
) -> Float[Array, "B T N H"]:
    """Causal attention within segments; `window` keys back at most (0: all), scores capped at +-`soft_cap` (0: not).

    "auto" takes a kernel on a TPU or a Hopper GPU, inside a `shard_map` over all axes or with one device, and else the
    reference.
    """
    heads, groups = query_BTNH.shape[2], key_BTKH.shape[2]
    if heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key/value heads evenly")
    if window < 0 or soft_cap < 0:
        raise ValueError(f"window and soft_cap must not be negative: {window=} {soft_cap=}")
    settings: dict[str, Any] = {"scale": scale, "window": window, "soft_cap": soft_cap}
    operands = query_BTNH, key_BTKH, value_BTKH, segment_BT
    if placement.takes_triton(backend, supported=gpu.supports(query_BTNH, key_BTKH)):
        return gpu.attention(*operands, **settings)
    wide_enough = query_BTNH.dtype in (jnp.bfloat16, jnp.float32)
    if backend == "reference" or (backend == "auto" and not (placement.kernels_run() and wide_enough)):
        return reference.attention(*operands, **settings)
    if backend == "tpu" and placement.platform() != "tpu":
        raise ValueError(f"backend tpu needs a TPU; this is {placement.platform()}")
    settings["interpret"] = pltpu.InterpretParams() if backend == "tpu_interpret" else False
    length, width = query_BTNH.shape[1], query_BTNH.shape[3]
    if 0 < window < length and window_kernel.supports(length, width, window):
        return window_kernel.attention(*operands, **settings)
    return causal.attention(*operands, **settings, vmem=_vmem())


def _vmem() -> int:
    """Memory on chip that the causal kernel may plan with: TPU v4 has a quarter of the others'."""
    return causal.VMEM // 4 if "v4" in placement.device_kind() else causal.VMEM
