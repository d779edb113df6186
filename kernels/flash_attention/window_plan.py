"""What both directions of window attention share: sizes, operands and their blocks, arithmetic of a tile of scores."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from thinkfirst.kernels import prologue as prologues

TILE = 128
BLOCK_TILES = 4
MOST_PAST_TILES = 8  # what fits the 16 MiB of VMEM that every TPU has: windows to 1,025 keys, or texts to 1,152
WIDEST_HEAD = 256
MASKED = -1e30
LOG2_E = math.log2(math.e)

Ref = Any


class Plan(NamedTuple):
    """What is fixed when the kernel is traced."""

    scale: float
    window: int  # keys seen, the query's own included; the whole padded text at most
    soft_cap: float
    past: int  # key tiles before its own that a query tile can see
    tiles: int  # tiles of a block
    reach: int  # key blocks before its own that a query block can see
    blocks: int
    heads_per_group: int
    epsilon: float  # of the norm in the prologue
    interpret: Any

    @property
    def rows(self) -> int:
        return self.tiles * TILE

    def slot(self, i: Array, back: int) -> Array:
        """Where block `i - back` stands among those that block `i` can see."""
        return jax.lax.rem(i - back + self.reach + 1, self.reach + 1)

    def first_tile(self, tile: int, before: int) -> int:
        """The first key tile that a query tile sees, counted from the start of its block, `before` blocks at hand."""
        return max(tile - self.past, -before * self.tiles)


class Operands(NamedTuple):
    """What both directions read; of keys and values there is a block per block back, and after a prologue one key."""

    segment: Any
    query: Any
    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    turn: prologues.Turn | None

    def query_rows(self, tile: int, plan: Plan) -> Array:
        """A tile of queries, after the prologue if there is one."""
        query = self.query[0, 0, span(tile)]
        return query if self.turn is None else self.turn.rows(query, prologues.QUERY, span(tile), plan.epsilon)

    def take_in(self, ring_ref: Ref, i: Array, plan: Plan) -> None:
        """Puts key block `i` through the prologue, into its slot of the blocks that can be seen."""
        if self.turn is not None:
            slot = jax.lax.rem(i, plan.reach + 1)
            for rows in map(span, range(plan.tiles)):
                key = self.keys[0][0, 0, rows]
                ring_ref[slot, rows] = self.turn.rows(key, prologues.KEY, rows, plan.epsilon)

    def key_rows(self, ring_ref: Ref, i: Array, first: int, last: int, plan: Plan) -> Array:
        """Keys of the tiles first .. last, counted from the start of query block `i`, after the prologue if any."""
        if self.turn is None:
            return rows_of(self.keys, first, last, plan)
        parts = [ring_ref[plan.slot(i, back), start:end] for back, start, end in spans(first, last, plan)]
        return jnp.concatenate(parts)


def in_blocks(plan: Plan, turn: prologues.Turn | None, length: int, width: int, last: int) -> Operands:
    """The blocks of the operands; in steps after block `last` they stay, so that nothing is fetched again."""
    shape = (1, 1, plan.rows, width)

    def key(back: int) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda b, k, i, j: (b, k, jnp.maximum(jnp.minimum(i, last) - back, 0), 0))

    backs = range(plan.reach + 1)
    return Operands(
        segment=pl.BlockSpec((1, 1, length), lambda b, k, i, j: (b, 0, 0)),
        query=pl.BlockSpec(shape, functools.partial(own_block, plan, last)),
        keys=tuple(key(back) for back in backs) if turn is None else (key(0),),
        values=tuple(key(back) for back in backs),
        turn=angles(plan, turn, width, lambda i: jnp.minimum(i, last)),
    )


def own_block(plan: Plan, last: int, *at: Any) -> tuple[Any, ...]:
    """Index of the block of query head j; in steps after block `last` that of the last head stays."""
    b, k, i, j = at
    head = k * plan.heads_per_group + jnp.where(i > last, plan.heads_per_group - 1, j)
    return b, head, jnp.minimum(i, last), 0


def angles(plan: Plan, turn: prologues.Turn | None, width: int, block_of: Any) -> prologues.Turn | None:
    """Blocks of a prologue's operands."""
    if turn is None:
        return None
    angle = pl.BlockSpec((1, plan.rows, width // 2), lambda b, k, i, j: (b, block_of(i), 0))
    whole = pl.BlockSpec((1, width), lambda b, k, i, j: (0, 0))
    return prologues.Turn((whole,) * len(turn.scales), angle, angle)


def operands(plan: Plan, *arrays: Any) -> Operands:
    """The arrays of `in_blocks`."""
    query, key, value, segment, turn = arrays
    backs = plan.reach + 1
    return Operands(segment[:, None], query, (key,) * (backs if turn is None else 1), (value,) * backs, turn)


def ring(plan: Plan, turn: prologues.Turn | None, width: int, dtype: Any) -> Any:
    """Room for the key blocks that can be seen, after their prologue."""
    return None if turn is None else pltpu.VMEM((plan.reach + 1, plan.rows, width), dtype)


def shared_blocks(segment_ref: Ref, i: jax.Array, plan: Plan) -> jax.Array:
    """How many blocks back the farthest keys are whose segments overlap those of query block i, within its reach."""

    def ends(block: jax.Array) -> tuple[jax.Array, jax.Array]:
        segment = segment_ref[0, :, pl.ds(pl.multiple_of(block * plan.rows, TILE), plan.rows)].astype(jnp.float32)
        return segment.min(), segment.max()  # rounding keeps the order, so no overlap is missed

    low, high = ends(i)
    farthest = jnp.int32(0)
    for back in range(1, plan.reach + 1):
        their_low, their_high = ends(jnp.maximum(i - back, 0))
        farthest = jnp.where((i >= back) & (their_low <= high) & (low <= their_high), back, farthest)
    return farthest


def each_tile(start: Any, finish: Any, before: jax.Array, ahead: int, plan: Plan) -> None:
    """`start` then `finish` for every tile, `ahead` tiles apart, with `before` earlier key blocks at hand."""

    def with_blocks(count: int) -> None:
        started = [start(tile, count) for tile in range(min(ahead, plan.tiles))]
        for tile in range(plan.tiles):
            if tile + ahead < plan.tiles:
                started.append(start(tile + ahead, count))
            finish(tile, count, started[tile])

    for count in range(plan.reach + 1):
        pl.when(before == count)(functools.partial(with_blocks, count))


def span(tile: int) -> slice:
    return slice(tile * TILE, (tile + 1) * TILE)


def spans(first: int, last: int, plan: Plan) -> list[tuple[int, int, int]]:
    """Key tiles first .. last as (blocks back, first row, end row): one entry per block that they touch."""
    spans = []
    while first <= last:
        back = -(first // plan.tiles)
        start = first + back * plan.tiles
        end = min(last + back * plan.tiles + 1, plan.tiles)
        spans.append((back, start * TILE, end * TILE))
        first += end - start
    return spans


def rows_of(refs: Sequence[Ref], first: int, last: int, plan: Plan) -> jax.Array:
    """Keys or values of the tiles first .. last, counted from the start of the query block."""
    return jnp.concatenate([refs[back][0, 0, start:end] for back, start, end in spans(first, last, plan)])


def iota(dimension: int) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, (TILE, TILE), dimension)


def segment_row(segment_ref: Ref, tile: jax.Array) -> jax.Array:
    """Segments of a tile, [1, TILE]; before the text those of its first tile, which no query is let to use."""
    return segment_ref[0, :, pl.ds(pl.multiple_of(jnp.maximum(tile, 0) * TILE, TILE), TILE)]


def as_column(row: jax.Array) -> jax.Array:
    return jnp.broadcast_to(row, (TILE, TILE)).T


def bias(shared: jax.Array, later: jax.Array, distance: int, plan: Plan) -> jax.Array:
    """0 where a query, `distance + later` tokens after a key, sees it; MASKED elsewhere."""
    if distance == 0:
        shared &= later >= 0
    if distance + TILE > plan.window:
        shared &= distance + later < plan.window
    return jnp.where(shared, 0.0, MASKED)


def capped(score: jax.Array, plan: Plan) -> jax.Array:
    """Scaled and capped, times log2(e): powers of two are what the hardware has."""
    if plan.soft_cap:
        return jnp.tanh(score * (plan.scale / plan.soft_cap)) * (plan.soft_cap * LOG2_E)
    return score * (plan.scale * LOG2_E)


def dot(left: jax.Array, right: jax.Array, contract: tuple[int, int]) -> jax.Array:
    return jax.lax.dot_general(
        left,
        right,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
