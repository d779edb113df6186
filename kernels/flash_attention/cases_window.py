"""What a cost estimate runs: window attention at the shape of Gemma 3 1B's local layers, one text of 2,048 tokens.

Operands stand heads first, [B, N, T, H], as projections leave them: the kernel's own swap of axes then cancels.
`prologue` cases start from raw queries and keys.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thinkfirst.kernels import prologue as prologues
from thinkfirst.kernels.flash_attention import window

Case = tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]


def _context(query: jax.Array, key: jax.Array, value: jax.Array, segment: jax.Array, *turn: Any) -> jax.Array:
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    prologue = None
    if turn:
        query_scale, key_scale, sin, cos = turn
        prologue = prologues.Prologue(query_scale, key_scale, sin, cos, 1e-6)
    settings = {"scale": 256**-0.5, "window": 512, "soft_cap": 0.0}
    return window.attention(query, key, value, segment, **settings, prologue=prologue).swapaxes(1, 2)


def _gradients(
    dcontext: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array, *rest: jax.Array
) -> tuple[jax.Array, ...]:
    context, pull = jax.vjp(lambda query, key, value: _context(query, key, value, *rest), query, key, value)
    return context, *pull(dcontext)


def _operands(batch: int, *, prologue: bool) -> tuple[jax.ShapeDtypeStruct, ...]:
    query, key = (jax.ShapeDtypeStruct((batch, heads, 2048, 256), jnp.bfloat16) for heads in (4, 1))
    operands = query, key, key, jax.ShapeDtypeStruct((batch, 2048), jnp.int32)
    if not prologue:
        return operands
    scale = jax.ShapeDtypeStruct((256,), jnp.bfloat16)
    angle = jax.ShapeDtypeStruct((batch, 2048, 128), jnp.float32)
    return *operands, scale, scale, angle, angle


def forward(*, batch: int = 1, prologue: bool = False) -> Case:
    return _context, _operands(batch, prologue=prologue)


def forward_and_backward(*, batch: int = 1, prologue: bool = False) -> Case:
    operands = _operands(batch, prologue=prologue)
    return _gradients, (operands[0], *operands)


CASES: dict[str, Callable[[], Case]] = {
    "window_fwd": forward,
    "window_fwd_bwd": forward_and_backward,
    "window_fwd_bwd_memory": functools.partial(forward_and_backward, batch=8),
    "window_prologue_fwd": functools.partial(forward, prologue=True),
    "window_prologue_fwd_bwd": functools.partial(forward_and_backward, prologue=True),
}
