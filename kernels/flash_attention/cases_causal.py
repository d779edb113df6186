"""Calls of causal attention whose cost is estimated: a function and the shapes of its operands, a row of 2,048 tokens.

Queries, keys and values arrive as the projections write them, [B, T, N * H] and [B, T, K * H].
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from thinkfirst.kernels.flash_attention import causal

LENGTH = 2048
WIDTH = 256


def forward(heads: int, groups: int, soft_cap: float, *, batch: int = 1, first: tuple[int, ...] = ()):
    """Attention alone."""
    return _attend(heads, groups, soft_cap, first), _operands(batch, heads, groups)


def backward(heads: int, groups: int, soft_cap: float, *, batch: int = 1, first: tuple[int, ...] = ()):
    """Attention and the gradients of query, key and value."""
    attend = _attend(heads, groups, soft_cap, first)

    def both(query, key, value, segment, upstream):
        _, pull = jax.vjp(lambda *operands: attend(*operands, segment), query, key, value)
        return pull(upstream)

    operands = _operands(batch, heads, groups)
    return both, (*operands, operands[0])


def _attend(heads: int, groups: int, soft_cap: float, first: tuple[int, ...]):
    def attend(query, key, value, segment):
        split = [x.reshape(*x.shape[:2], n, WIDTH) for x, n in ((query, heads), (key, groups), (value, groups))]
        context = causal.attention(*split, segment, scale=WIDTH**-0.5, soft_cap=soft_cap, first=first)
        return context.reshape(query.shape)

    return attend


def _operands(batch: int, heads: int, groups: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    shapes = [jax.ShapeDtypeStruct((batch, LENGTH, n * WIDTH), jnp.bfloat16) for n in (heads, groups, groups)]
    return *shapes, jax.ShapeDtypeStruct((batch, LENGTH), jnp.int32)


GEMMA_3_1B = (4, 1, 0.0)
GEMMA_2_2B = (8, 4, 50.0)

CASES: dict[str, Callable[[], tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]]] = {
    "causal_g3_fwd": functools.partial(forward, *GEMMA_3_1B),
    "causal_g3_bwd": functools.partial(backward, *GEMMA_3_1B),
    "causal_g2_fwd": functools.partial(forward, *GEMMA_2_2B),
    "causal_g2_bwd": functools.partial(backward, *GEMMA_2_2B),
    "packed_causal_fwd": functools.partial(forward, *GEMMA_3_1B, first=(0, 1, 2, 3)),
}
