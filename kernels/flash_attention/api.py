"""Attention of training and prefill: checks, then the implementation.

Of the two kernels `window` is for windows much shorter than the text, `causal` for all else.  Both take the prologue of
queries and keys in where heads are whole pairs of lanes (256 wide), and leave it to XLA elsewhere.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from thinkfirst.kernels import placement
from thinkfirst.kernels import prologue as prologues
from thinkfirst.kernels.flash_attention import causal, gpu, reference, residuals
from thinkfirst.kernels.flash_attention import window as window_kernel

Backend = Literal["auto", "reference", "tpu", "tpu_interpret", "gpu"]


@jax.named_scope("flash_attention")
def attention(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segment_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    prologue: prologues.Prologue | None = None,
    backend: Backend = "auto",
) -> Float[Array, "B T N H"]:
    """Causal attention within segments; `window` keys back at most (0: all), scores capped at +-`soft_cap` (0: not).

    Queries and keys go through `prologue` first, if there is one; its sine and cosine are constants of differentiation.
    "auto" takes a kernel on a TPU or a Hopper GPU, inside a `shard_map` over all axes or with one device, and else the
    reference.
    """
    heads, groups = query_BTNH.shape[2], key_BTKH.shape[2]
    if heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key/value heads evenly")
    if window < 0 or soft_cap < 0:
        raise ValueError(f"window and soft_cap must not be negative: {window=} {soft_cap=}")
    if prologue:
        prologue = prologues.checked(prologue, query_BTNH)
    settings: dict[str, Any] = {"scale": scale, "window": window, "soft_cap": soft_cap}
    triton = placement.takes_triton(backend, supported=gpu.supports(query_BTNH, key_BTKH))
    wide_enough = query_BTNH.dtype in (jnp.bfloat16, jnp.float32)
    plain = backend == "reference" or (backend == "auto" and not (placement.kernels_run() and wide_enough))
    if triton or plain:
        if prologue:
            query_BTNH, key_BTKH = prologues.both(prologue, query_BTNH, key_BTKH)
        attend = gpu.attention if triton else reference.attention
        context_BTNH = attend(query_BTNH, key_BTKH, value_BTKH, segment_BT, **settings)
        return context_BTNH if triton else residuals.context(context_BTNH)
    if backend == "tpu" and placement.platform() != "tpu":
        raise ValueError(f"backend tpu needs a TPU; this is {placement.platform()}")
    operands = query_BTNH, key_BTKH, value_BTKH, segment_BT
    settings["prologue"] = prologue
    settings["interpret"] = pltpu.InterpretParams() if backend == "tpu_interpret" else False
    length, width = query_BTNH.shape[1], query_BTNH.shape[3]
    if 0 < window < length and window_kernel.supports(length, width, window):
        return window_kernel.attention(*operands, **settings)
    return causal.attention(*operands, **settings, vmem=_vmem())


def _vmem() -> int:
    """Memory on chip that the causal kernel may plan with: TPU v4 has a quarter of the others'."""
    return causal.VMEM // 4 if "v4" in placement.device_kind() else causal.VMEM
