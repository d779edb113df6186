"""Sliding-window attention on a TPU (Pallas Mosaic), forward and backward: for windows much shorter than the text.

All keys that a tile of 128 queries can see are at hand at once, so the softmax is exact in one pass and nothing is
rescaled.  Key tiles outside the window are never computed; key blocks that share no segment with the queries are
skipped.  What `reference.attention` computes, this does for every row.

Inside, heads stand before tokens, [B, N, T, H].  XLA lets a projection write this layout and the next one read it, so
the swap of axes costs nothing there; for operands that lie token-major in memory it is a copy.

Grid of both directions: (B, K, query blocks, J).  The J heads of a group follow each other, so a block of keys and
values is fetched once for all of them.  A block is up to 4 tiles; R = `reach` blocks before its own can be seen.

    forward     segments [1, 1, T]; query [1, 1, block, H]; key and value [1, 1, block, H], R + 1 of each: own block and
                those before it; out: context as query, lse [1, 1, 1, block] in base 2, one float per query and head
                carried from head to head: the mask of the block as numbers to add, [tiles, 128, R keys]
    backward    the same, and the context's gradient and lse; out: the query's gradient as query, and those of key and
                value for block i - R, which no later query sees (so R more steps than there are query blocks)
                carried: the mask, keys first, and the sums of R + 1 blocks of key and value gradients in float32

The backward pass holds whole rows of weights, so it needs neither the context nor partial sums in HBM: the row sum of
weight * gradient is taken where it is used.  Scores stand keys first there, and per-query numbers are then plain rows.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

TILE = 128
BLOCK_TILES = 4
MOST_PAST_TILES = 8  # what fits the 16 MiB of VMEM that every TPU has: windows to 1,025 keys, or texts to 1,152
WIDEST_HEAD = 256
MASKED = -1e30
LOG2_E = math.log2(math.e)
AHEAD_FORWARD = (
    2  # tiles whose products are written before this one's softmax: only then does the compiler overlap them
)
AHEAD_BACKWARD = 1

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
    interpret: Any

    @property
    def rows(self) -> int:
        return self.tiles * TILE

    def first_tile(self, tile: int, before: int) -> int:
        """The first key tile that a query tile sees, counted from the start of its block, `before` blocks at hand."""
        return max(tile - self.past, -before * self.tiles)


def supports(length: int, width: int, window: int) -> bool:
    """Whether texts of `length` tokens with heads of `width` can be computed here with this window (0: all)."""
    return width <= WIDEST_HEAD and width % 64 == 0 and _past_tiles(length, window) <= MOST_PAST_TILES


def attention(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segment_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int,
    soft_cap: float,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "B T N H"]:
    """Context of every position, as `reference.attention`, with gradients to query, key and value."""
    length, heads, width = query_BTNH.shape[1:]
    if not supports(length, width, window):
        most = MOST_PAST_TILES * TILE + 1
        raise ValueError(f"windows are at most {most} keys, heads 64, 128, 192 or 256: {window=} {length=} {width=}")
    if not query_BTNH.dtype == key_BTKH.dtype == value_BTKH.dtype:
        raise ValueError(f"dtypes differ: {query_BTNH.dtype}, {key_BTKH.dtype} and {value_BTKH.dtype}")
    padding = -length % TILE
    total = (length + padding) // TILE
    past = _past_tiles(length, window)
    if query_BTNH.dtype.itemsize <= 2:
        most = BLOCK_TILES
    else:  # twice the memory, and 16 MiB must do
        most = 2 if past <= MOST_PAST_TILES // 2 else 1
    tiles = max(size for size in range(1, most + 1) if total % size == 0)
    plan = Plan(
        scale=scale,
        window=window or length + padding,
        soft_cap=soft_cap,
        past=past,
        tiles=tiles,
        reach=-(-past // tiles),
        blocks=total // tiles,
        heads_per_group=heads // key_BTKH.shape[2],
        interpret=interpret,
    )
    pads = ((0, 0), (0, padding), (0, 0), (0, 0))
    heads_first = [jnp.pad(x, pads).swapaxes(1, 2) for x in (query_BTNH, key_BTKH, value_BTKH)]
    segment = jnp.pad(segment_BT.astype(jnp.int32), pads[:2], mode="edge")
    return _attend(*heads_first, segment, plan).swapaxes(1, 2)[:, :length]


def _past_tiles(length: int, window: int) -> int:
    tiles = -(-length // TILE)
    return min(-(-((window or length) - 1) // TILE), tiles - 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    query_BNTH: Float[Array, "B N T H"],
    key_BKTH: Float[Array, "B K T H"],
    value_BKTH: Float[Array, "B K T H"],
    segment_BT: Int[Array, "B T"],
    plan: Plan,
) -> Float[Array, "B N T H"]:
    return _forward(query_BNTH, key_BKTH, value_BKTH, segment_BT, plan)[0]


def _attend_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, segment: jax.Array, plan: Plan
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    context, lse = _forward(query, key, value, segment, plan)
    return context, (query, key, value, segment, lse)


def _attend_backward(
    plan: Plan, residuals: tuple[jax.Array, ...], dcontext: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    dquery, dkey, dvalue = _backward(residuals, dcontext, plan)
    return dquery, dkey, dvalue, None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(query: jax.Array, key: jax.Array, value: jax.Array, segment: jax.Array, plan: Plan) -> Sequence[jax.Array]:
    """Context [B, N, T, H] and log-sum-exp [B, N, 1, T], the latter in base 2."""
    batch, heads, length, width = query.shape
    block = (1, 1, plan.rows, width)
    j_heads = plan.heads_per_group
    own = pl.BlockSpec(block, lambda b, k, i, j: (b, k * j_heads + j, i, 0))
    keys = [
        pl.BlockSpec(block, lambda b, k, i, j, back=back: (b, k, jnp.maximum(i - back, 0), 0))
        for back in range(plan.reach + 1)
    ]
    return pl.pallas_call(
        functools.partial(_forward_kernel, plan=plan),
        grid=(batch, heads // j_heads, plan.blocks, j_heads),
        in_specs=[pl.BlockSpec((1, 1, length), lambda b, k, i, j: (b, 0, 0)), own, *keys, *keys],
        out_specs=[own, pl.BlockSpec((1, 1, 1, plan.rows), lambda b, k, i, j: (b, k * j_heads + j, 0, i))],
        scratch_shapes=[
            pltpu.SMEM((1,), jnp.int32),
            pltpu.VMEM((plan.tiles, TILE, (plan.past + 1) * TILE), jnp.float32),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        name="window_attention_forward",
        interpret=plan.interpret,
    )(segment[:, None], query, *[key] * len(keys), *[value] * len(keys))


def _forward_kernel(segment_ref: Ref, query_ref: Ref, *refs: Ref, plan: Plan) -> None:
    key_refs, value_refs = refs[: plan.reach + 1], refs[plan.reach + 1 : 2 * plan.reach + 2]
    context_ref, lse_ref, before_ref, bias_ref = refs[2 * plan.reach + 2 :]
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _() -> None:
        before_ref[0] = _shared_blocks(segment_ref, i, plan)
        later = _iota(0) - _iota(1)
        for tile in range(plan.tiles):
            mine = _as_column(_segment_row(segment_ref, i * plan.tiles + tile))
            for away in range(plan.past + 1):
                theirs = _segment_row(segment_ref, i * plan.tiles + tile - away)
                at = (plan.past - away) * TILE
                bias_ref[tile, :, at : at + TILE] = _bias(mine == theirs, later, away * TILE, plan)

    def score(tile: int, before: int) -> jax.Array:
        first = plan.first_tile(tile, before)
        key = _rows(key_refs, first, tile, plan)
        found = _capped(_dot(query_ref[0, 0, _span(tile)], key, (1, 1)), plan)
        return found + bias_ref[tile, :, (plan.past - tile + first) * TILE :]

    def finish(tile: int, before: int, score: jax.Array) -> None:
        value = _rows(value_refs, plan.first_tile(tile, before), tile, plan)
        top = score.max(axis=1, keepdims=True)
        weight = jnp.exp2(score - top)
        total = weight.sum(axis=1, keepdims=True)
        context = _dot(weight.astype(value.dtype), value, (1, 0)) / total
        context_ref[0, 0, _span(tile)] = context.astype(context_ref.dtype)
        lse_ref[0, 0, :, _span(tile)] = jnp.broadcast_to(top + jnp.log2(total), (TILE, TILE)).T[:1]

    _each_tile(score, finish, before_ref[0], AHEAD_FORWARD, plan)


def _backward(residuals: tuple[jax.Array, ...], dcontext: jax.Array, plan: Plan) -> Sequence[jax.Array]:
    """Gradients of query, key and value."""
    query, key, value, segment, lse = residuals
    batch, heads, length, width = query.shape
    block = (1, 1, plan.rows, width)
    j_heads = plan.heads_per_group
    last = plan.blocks - 1

    # In the last `reach` steps no query is left: the indices stay, so that nothing is fetched or written again.
    def own_head(k: Any, i: Any, j: Any) -> Any:
        return k * j_heads + jnp.where(i > last, j_heads - 1, j)

    own = pl.BlockSpec(block, lambda b, k, i, j: (b, own_head(k, i, j), jnp.minimum(i, last), 0))
    own_row = pl.BlockSpec((1, 1, 1, plan.rows), lambda b, k, i, j: (b, own_head(k, i, j), 0, jnp.minimum(i, last)))
    keys = [
        pl.BlockSpec(block, lambda b, k, i, j, back=back: (b, k, jnp.maximum(jnp.minimum(i, last) - back, 0), 0))
        for back in range(plan.reach + 1)
    ]
    done = pl.BlockSpec(block, lambda b, k, i, j: (b, k, jnp.maximum(i - plan.reach, 0), 0))
    sums = pltpu.VMEM((plan.reach + 1, plan.rows, width), jnp.float32)
    return pl.pallas_call(
        functools.partial(_backward_kernel, plan=plan),
        grid=(batch, heads // j_heads, plan.blocks + plan.reach, j_heads),
        in_specs=[pl.BlockSpec((1, 1, length), lambda b, k, i, j: (b, 0, 0)), own, own, own_row, *keys, *keys],
        out_specs=[own, done, done],
        scratch_shapes=[
            pltpu.SMEM((1,), jnp.int32),
            pltpu.VMEM((plan.tiles, (plan.past + 1) * TILE, TILE), jnp.float32),
            *(sums, sums),
        ],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        name="window_attention_backward",
        interpret=plan.interpret,
    )(
        segment[:, None],
        *(query, dcontext, lse),
        *[key] * len(keys),
        *[value] * len(keys),
    )


def _backward_kernel(segment_ref: Ref, query_ref: Ref, dcontext_ref: Ref, lse_ref: Ref, *refs: Ref, plan: Plan) -> None:
    key_refs, value_refs = refs[: plan.reach + 1], refs[plan.reach + 1 : 2 * plan.reach + 2]
    dquery_ref, dkey_ref, dvalue_ref, before_ref, bias_ref, dkey_sum_ref, dvalue_sum_ref = refs[2 * plan.reach + 2 :]
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when((j == 0) & (i < plan.blocks))
    def _() -> None:
        slot = jax.lax.rem(i, plan.reach + 1)
        for sum_ref in (dkey_sum_ref, dvalue_sum_ref):
            sum_ref[slot] = jnp.zeros(sum_ref.shape[1:], jnp.float32)
        before_ref[0] = _shared_blocks(segment_ref, i, plan)
        later = _iota(1) - _iota(0)
        for other in range(-plan.past, plan.tiles):
            theirs = _as_column(_segment_row(segment_ref, i * plan.tiles + other))
            for tile in range(max(other, 0), min(other + plan.past + 1, plan.tiles)):
                mine = _segment_row(segment_ref, i * plan.tiles + tile)
                at = (plan.past - tile + other) * TILE
                bias_ref[tile, at : at + TILE] = _bias(mine == theirs, later, (tile - other) * TILE, plan)

    def add(sum_ref: Ref, first: int, tile: int, gradient: jax.Array) -> None:
        done = 0
        for back, start, end in _spans(first, tile, plan):
            slot = jax.lax.rem(i - back + plan.reach + 1, plan.reach + 1)
            sum_ref[slot, start:end] += gradient[done : done + end - start]
            done += end - start

    def products(tile: int, before: int) -> tuple[jax.Array, jax.Array]:
        first = plan.first_tile(tile, before)
        score = _dot(_rows(key_refs, first, tile, plan), query_ref[0, 0, _span(tile)], (1, 1))
        return score, _dot(_rows(value_refs, first, tile, plan), dcontext_ref[0, 0, _span(tile)], (1, 1))

    def finish(tile: int, before: int, found: tuple[jax.Array, jax.Array]) -> None:
        score, dweight = _capped(found[0], plan), found[1]
        query, dcontext = query_ref[0, 0, _span(tile)], dcontext_ref[0, 0, _span(tile)]
        first = plan.first_tile(tile, before)
        bias = bias_ref[tile, (plan.past - tile + first) * TILE :]
        weight = jnp.exp2(score + bias - lse_ref[0, 0, :, _span(tile)])
        dscore = weight * dweight
        dscore -= weight * dscore.sum(axis=0, keepdims=True)
        if plan.soft_cap:
            capped = score * (1 / (plan.soft_cap * LOG2_E))
            dscore *= 1 - capped * capped
        dscore = dscore.astype(query.dtype)
        add(dvalue_sum_ref, first, tile, _dot(weight.astype(query.dtype), dcontext, (1, 0)))
        add(dkey_sum_ref, first, tile, _dot(dscore, query, (1, 0)))
        dquery = _dot(dscore, _rows(key_refs, first, tile, plan), (0, 0)) * plan.scale
        dquery_ref[0, 0, _span(tile)] = dquery.astype(dquery_ref.dtype)

    pl.when(i < plan.blocks)(lambda: _each_tile(products, finish, before_ref[0], AHEAD_BACKWARD, plan))

    @pl.when((j == plan.heads_per_group - 1) & (i >= plan.reach))
    def _() -> None:
        slot = jax.lax.rem(i + 1, plan.reach + 1)
        dkey_ref[0, 0] = (dkey_sum_ref[slot] * plan.scale).astype(dkey_ref.dtype)
        dvalue_ref[0, 0] = dvalue_sum_ref[slot].astype(dvalue_ref.dtype)


def _shared_blocks(segment_ref: Ref, i: jax.Array, plan: Plan) -> jax.Array:
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


def _each_tile(start: Any, finish: Any, before: jax.Array, ahead: int, plan: Plan) -> None:
    """`start` then `finish` for every tile, `ahead` tiles apart, with `before` earlier key blocks at hand."""

    def with_blocks(count: int) -> None:
        started = [start(tile, count) for tile in range(min(ahead, plan.tiles))]
        for tile in range(plan.tiles):
            if tile + ahead < plan.tiles:
                started.append(start(tile + ahead, count))
            finish(tile, count, started[tile])

    for count in range(plan.reach + 1):
        pl.when(before == count)(functools.partial(with_blocks, count))


def _span(tile: int) -> slice:
    return slice(tile * TILE, (tile + 1) * TILE)


def _spans(first: int, last: int, plan: Plan) -> list[tuple[int, int, int]]:
    """Key tiles first .. last as (blocks back, first row, end row): one entry per block that they touch."""
    spans = []
    while first <= last:
        back = -(first // plan.tiles)
        start = first + back * plan.tiles
        end = min(last + back * plan.tiles + 1, plan.tiles)
        spans.append((back, start * TILE, end * TILE))
        first += end - start
    return spans


def _rows(refs: Sequence[Ref], first: int, last: int, plan: Plan) -> jax.Array:
    """Keys or values of the tiles first .. last, counted from the start of the query block."""
    return jnp.concatenate([refs[back][0, 0, start:end] for back, start, end in _spans(first, last, plan)])


def _iota(dimension: int) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, (TILE, TILE), dimension)


def _segment_row(segment_ref: Ref, tile: jax.Array) -> jax.Array:
    """Segments of a tile, [1, TILE]; before the text those of its first tile, which no query is let to use."""
    return segment_ref[0, :, pl.ds(pl.multiple_of(jnp.maximum(tile, 0) * TILE, TILE), TILE)]


def _as_column(row: jax.Array) -> jax.Array:
    return jnp.broadcast_to(row, (TILE, TILE)).T


def _bias(shared: jax.Array, later: jax.Array, distance: int, plan: Plan) -> jax.Array:
    """0 where a query, `distance + later` tokens after a key, sees it; MASKED elsewhere."""
    if distance == 0:
        shared &= later >= 0
    if distance + TILE > plan.window:
        shared &= distance + later < plan.window
    return jnp.where(shared, 0.0, MASKED)


def _capped(score: jax.Array, plan: Plan) -> jax.Array:
    """Scaled and capped, times log2(e): powers of two are what the hardware has."""
    if plan.soft_cap:
        return jnp.tanh(score * (plan.scale / plan.soft_cap)) * (plan.soft_cap * LOG2_E)
    return score * (plan.scale * LOG2_E)


def _dot(left: jax.Array, right: jax.Array, contract: tuple[int, int]) -> jax.Array:
    return jax.lax.dot_general(
        left,
        right,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
