"""Attention of decoding: checks, then the implementation.

Both forms write the new token's key and value as well, into one layer of a stack of caches, which they give back:
donate or carry the stack, or the compiler copies it.  Caches may be `quantised.Quantised`, own ones and prompts alike.
"""

from typing import Any, Literal

import jax
from jaxtyping import Array, Float, Int

from thinkfirst.kernels import placement
from thinkfirst.kernels.decode_attention import gpu, plans, reference, tpu

Backend = Literal["auto", "reference", "tpu", "tpu_interpret", "gpu"]


@jax.named_scope("decode_attention")
def append_attention(
    query_BNH: Float[Array, "B N H"],
    new: tuple[Float[Array, "B K H"], Float[Array, "B K H"]],
    ring: reference.Pair,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    backend: Backend = "auto",
) -> tuple[Float[Array, "B N H"], reference.Pair]:
    """One token per row, its (key, value) in `new`, against its ring in one layer: context, and rings that hold it."""
    _check(query_BNH, new[0].shape[1], window, soft_cap)
    settings: dict[str, Any] = {"scale": scale, "window": window, "soft_cap": soft_cap}
    if placement.takes_triton(backend, supported=gpu.supports(query_BNH, ring[0])):
        return gpu.append_attention(query_BNH, new, ring, layer, position_B, **settings)
    interpret = _chosen(backend, plans.problem(query_BNH, ring[0], 0))
    if interpret is None:
        return reference.append_attention(query_BNH, new, ring, layer, position_B, **settings)
    return tpu.append_attention(query_BNH, new, ring, layer, position_B, interpret=interpret, **settings)


@jax.named_scope("decode_attention")
def grouped(
    query_BNH: Float[Array, "B N H"],
    new: tuple[Float[Array, "B K H"], Float[Array, "B K H"]],
    own: reference.Pair,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
    *,
    prompt: reference.PromptPair,
    length_P: Int[Array, "P"],
    group_B: Int[Array, "B"],
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    backend: Backend = "auto",
) -> tuple[Float[Array, "B N H"], reference.Pair]:
    """One token per row against prompt `group_B` and the row's own tokens, whose first one is at `position_B` 0.

    Rows may share prompts in any order, and a prompt that no row looks at is not read.  A row at position -1 is idle:
    its context is finite and means nothing, and slot 0 of its own cache is written.
    """
    _check(query_BNH, new[0].shape[1], window, soft_cap)
    settings: dict[str, Any] = {"prompt": prompt, "length_P": length_P, "group_B": group_B, "scale": scale}
    settings |= {"window": window, "soft_cap": soft_cap}
    if placement.takes_triton(backend, supported=gpu.supports(query_BNH, own[0])):
        return gpu.grouped(query_BNH, new, own, layer, position_B, **settings)
    interpret = _chosen(backend, plans.problem(query_BNH, own[0], jax.tree.leaves(prompt)[0].shape[2]))
    if interpret is None:
        return reference.grouped(query_BNH, new, own, layer, position_B, **settings)
    return tpu.grouped(query_BNH, new, own, layer, position_B, interpret=interpret, **settings)


def _check(query_BNH: jax.Array, kv_heads: int, window: int, soft_cap: float) -> None:
    if query_BNH.shape[1] % kv_heads:
        raise ValueError(f"{query_BNH.shape[1]} query heads cannot share {kv_heads} key/value heads evenly")
    if window < 0 or soft_cap < 0:
        raise ValueError(f"window and soft_cap must not be negative: {window=} {soft_cap=}")


def _chosen(backend: Backend, problem: str) -> Any:
    """How to run the kernel (`interpret` of pallas_call), or None for the reference."""
    if backend == "reference" or (backend == "auto" and (problem or not placement.kernels_run())):
        return None
    if problem:
        raise ValueError(f"the kernel cannot take {problem}")
    if backend == "tpu" and placement.platform() != "tpu":
        raise ValueError(f"backend tpu needs a TPU; this is {placement.platform()}")
    return tpu.INTERPRET if backend == "tpu_interpret" else False
