"""A softmax that runs over blocks of keys, kept in VMEM by the kernel of decoding.

A row's query heads are kept in sheets of whole sublane tiles: those of one key/value head, or of several that together
fill no more than 8 sublanes (Gemma 2 2B: 4 times 2).  Each state is [sheets, rows * sublanes, ...].  A sheet goes
through the matrix unit with each of its key/value heads, which costs what it would if it were filled up with zeros, and
each query head keeps the product with its own.  The sublanes that are left over are never looked at.
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


@dataclasses.dataclass(frozen=True)
class Block:
    """Refs of keys or values of one row or prompt, [K, slots, H], and of their scale, [K, slots], if they have one."""

    values_ref: Any
    scale_ref: Any = None

    def scores(self, query: jax.Array, sheet: int, plan: plans.Plan) -> jax.Array:
        """Scores of the sheet's queries, [sublanes, slots]."""
        parts = [self._scaled(_dot(query, self.values_ref[k], BY_ROWS, plan), k) for k in plan.heads_of(sheet)]
        return _capped(_each_its_own(parts, plan), plan)

    def weighted(self, weight: jax.Array, sheet: int, plan: plans.Plan) -> jax.Array:
        """Sums by the sheet's weights, [sublanes, H]."""
        heads = plan.heads_of(sheet)
        parts = [_dot(self._scaled(weight, k), self.values_ref[k], BY_COLUMNS, plan) for k in heads]
        return _each_its_own(parts, plan)

    def _scaled(self, x: jax.Array, k: int) -> jax.Array:
        return x if self.scale_ref is None else x * self.scale_ref[pl.ds(k, 1)]


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Refs of queries, and of the maximum, sum and weighted sum so far."""

    query_ref: Any
    maximum_ref: Any
    total_ref: Any
    weighted_ref: Any

    def start(self, at: Any, query: jax.Array, new: tuple[Any, Any], plan: plans.Plan) -> None:
        """The softmax of one row over its new token alone, whose score needs no matrix unit."""
        for sheet in range(plan.sheets):
            used = plan.used(sheet)
            self.query_ref[sheet, pl.ds(at.start, used.stop - used.start)] = query[used]
            key, value = (_spread(token, sheet, plan) for token in new)
            score = jnp.sum(self.query_ref[sheet, at] * key, axis=1, keepdims=True)
            self.maximum_ref[sheet, at] = _capped(score, plan)
            self.total_ref[sheet, at] = jnp.ones((plan.padded, 1), jnp.float32)
            self.weighted_ref[sheet, at] = jnp.broadcast_to(value, (plan.padded, value.shape[1]))

    def queries(self, sheet: int, places: Sequence[Any]) -> jax.Array:
        """The queries at some places, under each other."""
        return _stacked(self.query_ref, sheet, places)

    def extend(
        self,
        sheet: int,
        places: Sequence[Any],
        scores: tuple[jax.Array, jax.Array],
        weigh: Callable[[jax.Array], jax.Array],
    ) -> None:
        """Takes in a block: `scores` and which of them count; `weigh` multiplies weights by the block's values."""
        score = jnp.where(scores[1], scores[0], reference.MASKED)
        before = _stacked(self.maximum_ref, sheet, places)
        maximum = jnp.maximum(before, jnp.max(score, axis=1, keepdims=True))
        weight, fade = jnp.exp(score - maximum), jnp.exp(before - maximum)
        total = _stacked(self.total_ref, sheet, places) * fade + jnp.sum(weight, axis=1, keepdims=True)
        weighted = _stacked(self.weighted_ref, sheet, places) * fade + weigh(weight)
        for ref, now in ((self.maximum_ref, maximum), (self.total_ref, total), (self.weighted_ref, weighted)):
            _store(ref, sheet, places, now)

    def finish(self, context_ref: Any, rows: Sequence[Any], places: Sequence[Any], plan: plans.Plan) -> None:
        """Writes the context of some rows, each kept at a place of its own."""
        for sheet in range(plan.sheets):
            used = plan.used(sheet)
            for row, at in zip(rows, places, strict=True):
                context = self.weighted_ref[sheet, at] / self.total_ref[sheet, at]
                context_ref[row, used] = context[: used.stop - used.start].astype(context_ref.dtype)


def place(row: Any, plan: plans.Plan, *, count: int = 1) -> Any:
    """Where `count` rows from that number on are kept."""
    first = row * plan.padded
    return pl.ds(first if isinstance(first, int) else pl.multiple_of(first, plans.SUBLANES), count * plan.padded)


def _dot(left: jax.Array, right: jax.Array, dimensions: Any, plan: plans.Plan) -> jax.Array:
    """The product in float32; of bfloat16 numbers, unless keys or queries are float32."""
    dtype, precision = (jnp.float32, jax.lax.Precision.HIGHEST) if plan.precise else (jnp.bfloat16, None)
    left, right = left.astype(dtype), right.astype(dtype)
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _capped(score: jax.Array, plan: plans.Plan) -> jax.Array:
    score = score * plan.scale
    return plan.soft_cap * jnp.tanh(score / plan.soft_cap) if plan.soft_cap else score


def _each_its_own(parts: Sequence[jax.Array], plan: plans.Plan) -> jax.Array:
    """For each query head of a sheet, its row of the part that belongs to its key/value head."""
    found = parts[0]
    for i, part in enumerate(parts[1:], start=1):
        head = jax.lax.broadcasted_iota(jnp.int32, part.shape, 0) & (plan.padded - 1)
        found = jnp.where(head >= i * plan.shared, part, found)
    return found


def _spread(token: Callable[[int], jax.Array], sheet: int, plan: plans.Plan) -> jax.Array:
    """For each query head of a sheet, the new key or value it looks at; one row where all look at the same."""
    tokens = [token(k) for k in plan.heads_of(sheet)]
    if len(tokens) == 1:
        return tokens[0]
    return _each_its_own([jnp.broadcast_to(x, (plan.padded, x.shape[1])) for x in tokens], plan)


def _stacked(ref: Any, sheet: int, places: Sequence[Any]) -> jax.Array:
    parts = [ref[sheet, at] for at in places]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _store(ref: Any, sheet: int, places: Sequence[Any], values: jax.Array) -> None:
    first = 0
    for at in places:
        ref[sheet, at] = values[first : first + at.size]
        first += at.size
