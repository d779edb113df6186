"""What a cost estimate runs: window attention at the shape of Gemma 3 1B's local layers, one text of 2,048 tokens.

Operands stand heads first, [B, N, T, H], as projections leave them: the kernel's own swap of axes then cancels.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thinkfirst.kernels.flash_attention import window

Case = tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]


def _context(query: jax.Array, key: jax.Array, value: jax.Array, segment: jax.Array) -> jax.Array:
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    context = window.attention(query, key, value, segment, scale=256**-0.5, window=512, soft_cap=0.0)
    return context.swapaxes(1, 2)


def _gradients(
    query: jax.Array, key: jax.Array, value: jax.Array, segment: jax.Array, dcontext: jax.Array
) -> tuple[jax.Array, ...]:
    context, pull = jax.vjp(lambda query, key, value: _context(query, key, value, segment), query, key, value)
    return context, *pull(dcontext)


def _operands(batch: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    return (
        jax.ShapeDtypeStruct((batch, 4, 2048, 256), jnp.bfloat16),
        jax.ShapeDtypeStruct((batch, 1, 2048, 256), jnp.bfloat16),
        jax.ShapeDtypeStruct((batch, 2048), jnp.int32),
    )


def forward(batch: int = 1) -> Case:
    query, key, segment = _operands(batch)
    return _context, (query, key, key, segment)


def forward_and_backward(batch: int = 1) -> Case:
    query, key, segment = _operands(batch)
    return _gradients, (query, key, key, segment, query)


CASES: dict[str, Callable[[], Case]] = {
    "window_fwd": forward,
    "window_fwd_bwd": forward_and_backward,
    "window_fwd_bwd_memory": functools.partial(forward_and_backward, batch=8),
}
