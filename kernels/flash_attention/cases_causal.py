"""Calls of causal attention whose cost is estimated: a function and the shapes of its operands, a row of 2,048 tokens.

Queries, keys and values arrive as the projections write them, [B, T, N * H] and [B, T, K * H].
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from thinkfirst.kernels.flash_attention import causal

Case = tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]
LENGTH = 2048
WIDTH = 256


def forward(heads: int, groups: int, soft_cap: float, *, batch: int = 1, length: int = LENGTH, **options: Any) -> Case:
    """Attention alone."""
    return _attend(heads, groups, soft_cap, options), _operands(batch, length, heads, groups)


def backward(heads: int, groups: int, soft_cap: float, *, batch: int = 1, length: int = LENGTH, **options: Any) -> Case:
    """Attention, and the gradients of query, key and value; the context is an output, as it is in a model."""
    attend = _attend(heads, groups, soft_cap, options)

    def both(query: Array, key: Array, value: Array, segment: Array, upstream: Array) -> tuple[Array, ...]:
        context, pull = jax.vjp(lambda *operands: attend(*operands, segment), query, key, value)
        return context, *pull(upstream)

    operands = _operands(batch, length, heads, groups)
    return both, (*operands, operands[0])


def _attend(heads: int, groups: int, soft_cap: float, options: dict) -> Callable:
    def attend(query: Array, key: Array, value: Array, segment: Array) -> Array:
        def split(x: Array, count: int) -> Array:
            return x.reshape(*x.shape[:2], count, WIDTH)

        context = causal.attention(
            split(query, heads),
            split(key, groups),
            split(value, groups),
            segment,
            scale=WIDTH**-0.5,
            soft_cap=soft_cap,
            **options,
        )
        return context.reshape(query.shape)

    return attend


def _operands(batch: int, length: int, heads: int, groups: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    shapes = [jax.ShapeDtypeStruct((batch, length, n * WIDTH), jnp.bfloat16) for n in (heads, groups, groups)]
    return *shapes, jax.ShapeDtypeStruct((batch, length), jnp.int32)


GEMMA_3_1B = (4, 1, 0.0)
GEMMA_2_2B = (8, 4, 50.0)

CASES: dict[str, Callable[[], Case]] = {
    "causal_g3_fwd": functools.partial(forward, *GEMMA_3_1B),
    "causal_g3_bwd": functools.partial(backward, *GEMMA_3_1B),
    "causal_g2_fwd": functools.partial(forward, *GEMMA_2_2B),
    "causal_g2_bwd": functools.partial(backward, *GEMMA_2_2B),
    "causal_g2_bwd_memory": functools.partial(backward, *GEMMA_2_2B, batch=8),
    "packed_causal_fwd": functools.partial(forward, *GEMMA_3_1B, first=(0, 1, 2, 3)),
}
