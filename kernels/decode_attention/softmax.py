"""A softmax that runs over blocks of keys, kept in VMEM by the kernel of decoding, [K, rows * J', ...] each.

J' is J rounded up to 8; the query heads that fill up are never looked at.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from thinkfirst.kernels.decode_attention import plans, reference

BY_ROWS = (((1,), (1,)), ((), ()))
BY_COLUMNS = (((1,), (0,)), ((), ()))


def dot(left: jax.Array, right: jax.Array, dimensions: Any) -> jax.Array:
    """The product in float32, of operands of the dtype of the right one."""
    precision = jax.lax.Precision.HIGHEST if right.dtype == jnp.float32 else None
    left = left.astype(right.dtype)
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)


def capped(score: jax.Array, plan: plans.Plan) -> jax.Array:
    """Scaled and softly capped scores."""
    score = score * plan.scale
    return plan.soft_cap * jnp.tanh(score / plan.soft_cap) if plan.soft_cap else score


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Refs of queries, and of the maximum, sum and weighted sum so far."""

    query_ref: Any
    maximum_ref: Any
    total_ref: Any
    weighted_ref: Any

    def start(self, k: int, at: Any, new: tuple[jax.Array, jax.Array], plan: plans.Plan) -> None:
        """The softmax over a row's new token alone, whose score needs no matrix unit."""
        key, value = new
        score = jnp.sum(self.query_ref[k, at] * key, axis=1, keepdims=True)
        self.maximum_ref[k, at] = capped(score, plan)
        self.total_ref[k, at] = jnp.ones((plan.padded, 1), jnp.float32)
        self.weighted_ref[k, at] = jnp.broadcast_to(value, (plan.padded, value.shape[1]))

    def queries(self, k: int, places: Sequence[Any]) -> jax.Array:
        """The queries at some places, under each other."""
        return _stacked(self.query_ref, k, places)

    def extend(
        self,
        k: int,
        places: Sequence[Any],
        scores: tuple[jax.Array, jax.Array],
        weigh: Callable[[jax.Array], jax.Array],
    ) -> None:
        """Takes in a block: `scores` and which of them count; `weigh` multiplies weights by the block's values."""
        score = jnp.where(scores[1], scores[0], reference.MASKED)
        before = _stacked(self.maximum_ref, k, places)
        maximum = jnp.maximum(before, jnp.max(score, axis=1, keepdims=True))
        weight, fade = jnp.exp(score - maximum), jnp.exp(before - maximum)
        total = _stacked(self.total_ref, k, places) * fade + jnp.sum(weight, axis=1, keepdims=True)
        weighted = _stacked(self.weighted_ref, k, places) * fade + weigh(weight)
        for ref, now in ((self.maximum_ref, maximum), (self.total_ref, total), (self.weighted_ref, weighted)):
            _store(ref, k, places, now)

    def finish(self, context_ref: Any, rows: Sequence[Any], places: Sequence[Any], plan: plans.Plan) -> None:
        """Writes the context of some rows, each kept at a place of its own."""
        for k in range(plan.kv_heads):
            for row, at in zip(rows, places, strict=True):
                context = self.weighted_ref[k, at] / self.total_ref[k, at]
                heads = slice(k * plan.shared, (k + 1) * plan.shared)
                context_ref[row, heads] = context[: plan.shared].astype(context_ref.dtype)


def place(row: Any, plan: plans.Plan, *, count: int = 1) -> Any:
    """Where `count` rows from that number on are kept."""
    first = row * plan.padded
    return pl.ds(first if isinstance(first, int) else pl.multiple_of(first, plans.SUBLANES), count * plan.padded)


def _stacked(ref: Any, k: int, places: Sequence[Any]) -> jax.Array:
    parts = [ref[k, at] for at in places]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _store(ref: Any, k: int, places: Sequence[Any], values: jax.Array) -> None:
    first = 0
    for at in places:
        ref[k, at] = values[first : first + at.size]
        first += at.size
