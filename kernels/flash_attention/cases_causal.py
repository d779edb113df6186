"""Calls of causal attention whose cost is estimated: a function and the shapes of its operands, a row of 2,048 tokens.

Operands and the upstream gradient stand heads first, [B, N, T, H], and results token-major, [B, T, N * H], as XLA lets
the projections write and read them.  `prologue` cases start from raw queries and keys.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from thinkfirst.kernels import prologue as prologues
from thinkfirst.kernels.flash_attention import causal

Case = tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]
LENGTH = 2048
WIDTH = 256


def forward(heads: int, groups: int, soft_cap: float, *, batch: int = 1, prologue: str = "", **options: Any) -> Case:
    """Attention alone; `prologue` is "", "rope" or "norm and rope"."""
    attend = _attend(soft_cap, options)
    return lambda *operands: _tokens_first(attend(*operands)), _operands(batch, heads, groups, prologue)


def backward(heads: int, groups: int, soft_cap: float, *, batch: int = 1, prologue: str = "", **options: Any) -> Case:
    """Attention, and the gradients of query, key and value; the context is an output, as it is in a model."""
    attend = _attend(soft_cap, options)

    def both(upstream: Array, query: Array, key: Array, value: Array, *rest: Array) -> tuple[Array, ...]:
        context, pull = jax.vjp(lambda *operands: attend(*operands, *rest), query, key, value)
        gradients = pull(upstream.swapaxes(1, 2))
        return _tokens_first(context), *(_tokens_first(x.swapaxes(1, 2)) for x in gradients)

    operands = _operands(batch, heads, groups, prologue)
    return both, (operands[0], *operands)


def _tokens_first(x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1)


def _attend(soft_cap: float, options: dict) -> Callable:
    def attend(query: Array, key: Array, value: Array, segment: Array, *turn: Any) -> Array:
        sin, cos, *scales = turn or (None, None)
        query_scale, key_scale = scales or (None, None)
        prologue = prologues.Prologue(query_scale, key_scale, sin, cos, 1e-6) if turn else None
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
        settings = {"scale": WIDTH**-0.5, "soft_cap": soft_cap, "prologue": prologue, **options}
        return causal.attention(query, key, value, segment, **settings)

    return attend


def _operands(batch: int, heads: int, groups: int, prologue: str) -> tuple[jax.ShapeDtypeStruct, ...]:
    shapes = [jax.ShapeDtypeStruct((batch, n, LENGTH, WIDTH), jnp.bfloat16) for n in (heads, groups, groups)]
    shapes.append(jax.ShapeDtypeStruct((batch, LENGTH), jnp.int32))
    if prologue:
        shapes += [jax.ShapeDtypeStruct((batch, LENGTH, WIDTH // 2), jnp.float32)] * 2
    if prologue == "norm and rope":
        shapes += [jax.ShapeDtypeStruct((WIDTH,), jnp.bfloat16)] * 2
    return tuple(shapes)


GEMMA_3_1B = (4, 1, 0.0)
GEMMA_2_2B = (8, 4, 50.0)

CASES: dict[str, Callable[[], Case]] = {
    "causal_g3_fwd": functools.partial(forward, *GEMMA_3_1B),
    "causal_g3_bwd": functools.partial(backward, *GEMMA_3_1B),
    "causal_g2_fwd": functools.partial(forward, *GEMMA_2_2B),
    "causal_g2_bwd": functools.partial(backward, *GEMMA_2_2B),
    "causal_g2_bwd_memory": functools.partial(backward, *GEMMA_2_2B, batch=8),
    "packed_causal_fwd": functools.partial(forward, *GEMMA_3_1B, first=(0, 1, 2, 3)),
    "causal_g3_prologue_fwd": functools.partial(forward, *GEMMA_3_1B, prologue="norm and rope"),
    "causal_g3_prologue_bwd": functools.partial(backward, *GEMMA_3_1B, prologue="norm and rope"),
    "causal_g2_prologue_fwd": functools.partial(forward, *GEMMA_2_2B, prologue="rope"),
    "causal_g2_prologue_bwd": functools.partial(backward, *GEMMA_2_2B, prologue="rope"),
}
