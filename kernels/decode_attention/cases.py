"""Operands of the cases whose cost is estimated: one layer of Gemma 3 1B (4 query heads, 1 key/value of 256), bf16.

The estimate reads prefetched data as zeros, so lengths are given when compiling.  The caches are donated, or a copy of
them would be part of what is measured.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thinkfirst.kernels import blocks
from thinkfirst.kernels.decode_attention import tpu

ROWS, HEADS, WIDTH, LAYERS = 16, 4, 256, 2
SCALE = WIDTH**-0.5

Case = tuple[Callable, tuple]


def _bf16(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _operands(slots: int) -> tuple:
    new, cache = _bf16(ROWS, 1, WIDTH), _bf16(LAYERS, ROWS, slots, 1, WIDTH)
    return _bf16(ROWS, HEADS, WIDTH), (new, new), (cache, cache), _int32(), _int32(ROWS)


def _donating(function: Callable) -> Callable:
    return jax.jit(function, donate_argnums=2)


def ring_decode() -> Case:
    """A local layer: 16 sequences, window 512, full."""
    settings: dict[str, Any] = {"scale": SCALE, "window": 512, "soft_cap": 0.0, "known_position": 511}
    return _donating(functools.partial(tpu.append_attention, **settings)), _operands(512)


def full_decode() -> Case:
    """A global layer: 16 sequences of 1,024 tokens."""
    settings: dict[str, Any] = {"scale": SCALE, "window": 0, "soft_cap": 0.0, "known_position": 1023}
    return _donating(functools.partial(tpu.append_attention, **settings)), _operands(1024)


def full_decode_group() -> Case:
    """The same tokens, 512 of them the prompts of two groups of 8.

    Which rows share a prompt is data, which the estimate reads as zeros.  So the kernel is told when compiling that the
    groups follow each other, and takes the same steps by arithmetic.
    """
    prompt = _bf16(LAYERS, 2, 512, 1, WIDTH)

    def function(query: Any, new: Any, own: Any, place: Any, shared: Any) -> Any:
        settings: dict[str, Any] = {"scale": SCALE, "window": 0, "soft_cap": 0.0, "known": (511, 512)}
        settings |= {"prompt": shared[0], "length_P": shared[1], "group_B": jnp.arange(ROWS) // 8}
        return tpu.grouped(query, new, own, *place, **settings)

    *operands, layer, position = _operands(512)
    return _donating(function), (*operands, (layer, position), ((prompt, prompt), _int32(2)))


CASES: dict[str, Callable[[], Case]] = {
    "ring_decode": ring_decode,
    "full_decode": full_decode,
    "full_decode_group": full_decode_group,
}

_CUTS = tuple({"rows": rows, "block": block} for rows in (4, 8, 16) for block in (128, 256, 512))
SEARCH = {name: blocks.Search("decode_attention", _CUTS) for name in ("ring_decode", "full_decode")}


def _moved(slots_read: int) -> int:
    """Bytes of keys and values read and written, and of queries, new tokens and contexts."""
    slot = WIDTH * 2
    return 2 * (slots_read + ROWS * 16 + ROWS) * slot + 2 * ROWS * HEADS * slot


BYTES: dict[str, int] = {
    "ring_decode": _moved(ROWS * 512),
    "full_decode": _moved(ROWS * 1024),
    "full_decode_group": _moved(2 * 512 + ROWS * 512),
}
