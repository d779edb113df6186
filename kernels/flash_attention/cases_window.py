"""What a cost estimate runs: window attention at the shape of Gemma 3 1B's local layers, one text of 2,048 tokens.

Operands stand heads first, [B, N, T, H], as projections leave them: the kernel's own swap of axes then cancels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thinkfirst.kernels.flash_attention import window

Case = tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]


def _context(query: jax.Array, key: jax.Array, value: jax.Array, segment: jax.Array) -> jax.Array:
    tokens_first = [x.swapaxes(1, 2) for x in (query, key, value)]
    return window.attention(*tokens_first, segment, scale=256**-0.5, window=512, soft_cap=0.0).swapaxes(1, 2)


def _gradients(dcontext: jax.Array, segment: jax.Array, *operands: jax.Array) -> tuple[jax.Array, ...]:
    context, pull = jax.vjp(lambda *operands: _context(*operands, segment), *operands)
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
    return _gradients, (query, segment, query, key, key)


CASES: dict[str, Callable[[], Case]] = {"window_fwd": forward, "window_fwd_bwd": forward_and_backward}
