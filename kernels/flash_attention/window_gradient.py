"""The gradient of sliding-window attention on a TPU, in the order of the forward pass; see window.py.

    grid        (B, K, query blocks + R, J)
    in          as forward, and the context's gradient [1, 1, block, H] and lse [1, 1, 1, block] at (i)
    out         the query's gradient as query, and those of key and value for block i - R, which no later query sees
                (so R more steps than there are query blocks)
    carried     the mask, keys first, and the sums of R + 1 blocks of key and value gradients in float32

Whole rows of weights are at hand, so neither the context nor partial sums in HBM are needed: the row sum of weight *
gradient is taken where it is used.  Scores stand keys first, and per-query numbers are then plain rows.

With a prologue queries and keys go through it as in the forward pass.  Gradients are pulled back through it where they
are complete, that of key block i - R with that block's key, sine and cosine, which then are at hand a second time; the
gradients of the norm scales are summed over all steps of a key/value head, eight rows each.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from thinkfirst.kernels import prologue as prologues
from thinkfirst.kernels.flash_attention import window_plan

AHEAD = 1

Plan = window_plan.Plan
Ref = window_plan.Ref
TILE = window_plan.TILE
span, dot = window_plan.span, window_plan.dot
SCRATCH = ("before", "mask", "key sums", "value sums", "keys", "queries")


class Late(NamedTuple):
    """What the key's gradient is pulled back with: the blocks that belong to block i - R."""

    key: Any
    turn: prologues.Turn | None


def gradient(plan: Plan, *arrays: Any) -> tuple[Array, Array, Array, prologues.Turn | None]:
    """Gradients of query, key, value and prologue from what the forward pass saves and the context's gradient."""
    query, key, value, segment, turn, lse, dcontext = arrays
    batch, heads, length, width = query.shape
    j_heads, last = plan.heads_per_group, plan.blocks - 1
    groups = heads // j_heads
    blocks = window_plan.in_blocks(plan, turn, length, width, last)

    def own_row(*at: Any) -> tuple[Any, ...]:
        b, head, i, _ = window_plan.own_block(plan, last, *at)
        return b, head, 0, i

    def done(i: Any) -> Any:
        return jnp.maximum(i - plan.reach, 0)

    done_key = pl.BlockSpec((1, 1, plan.rows, width), lambda b, k, i, j: (b, k, done(i), 0))
    out_specs = [blocks.query, done_key, done_key]
    out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)]
    late_blocks, turned_query = None, None
    if turn is not None:
        late_blocks = Late(done_key, window_plan.angles(plan, turn, width, done))
        turned_query = pltpu.VMEM((plan.rows, width), query.dtype)
        if turn.scales:
            out_specs.append(pl.BlockSpec((1, 1, 2, 8, width), lambda b, k, i, j: (b, k, 0, 0, 0)))
            out_shape.append(jax.ShapeDtypeStruct((batch, groups, 2, 8, width), jnp.float32))
    sums = pltpu.VMEM((plan.reach + 1, plan.rows, width), jnp.float32)
    dquery, dkey, dvalue, *dscales = pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        grid=(batch, groups, plan.blocks + plan.reach, j_heads),
        in_specs=[blocks, blocks.query, pl.BlockSpec((1, 1, 1, plan.rows), own_row), late_blocks],
        out_specs=out_specs,
        scratch_shapes=[
            pltpu.SMEM((1,), jnp.int32),
            pltpu.VMEM((plan.tiles, (plan.past + 1) * TILE, TILE), jnp.float32),
            *(sums, sums),
            window_plan.ring(plan, turn, width, key.dtype),
            turned_query,
        ],
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        name="window_attention_backward",
        interpret=plan.interpret,
    )(window_plan.operands(plan, query, key, value, segment, turn), dcontext, lse, turn and Late(key, turn))
    return dquery, dkey, dvalue, turn and turn.gradient(*dscales)


def _kernel(operands: window_plan.Operands, dcontext_ref: Ref, lse_ref: Ref, *refs: Any, plan: Plan) -> None:
    late, dquery_ref, dkey_ref, dvalue_ref, *dscale_ref = refs[: -len(SCRATCH)]
    before_ref, bias_ref, dkey_sum_ref, dvalue_sum_ref, ring_ref, query_ref = refs[-len(SCRATCH) :]
    segment_ref = operands.segment
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when((j == 0) & (i < plan.blocks))
    def _() -> None:
        operands.take_in(ring_ref, i, plan)
        slot = plan.slot(i, 0)
        for sum_ref in (dkey_sum_ref, dvalue_sum_ref):
            sum_ref[slot] = jnp.zeros(sum_ref.shape[1:], jnp.float32)
        before_ref[0] = window_plan.shared_blocks(segment_ref, i, plan)
        later = window_plan.iota(1) - window_plan.iota(0)
        for other in range(-plan.past, plan.tiles):
            theirs = window_plan.as_column(window_plan.segment_row(segment_ref, i * plan.tiles + other))
            for tile in range(max(other, 0), min(other + plan.past + 1, plan.tiles)):
                mine = window_plan.segment_row(segment_ref, i * plan.tiles + tile)
                at = (plan.past - tile + other) * TILE
                bias_ref[tile, at : at + TILE] = window_plan.bias(mine == theirs, later, (tile - other) * TILE, plan)

    if dscale_ref:

        @pl.when((i == 0) & (j == 0))
        def _() -> None:
            dscale_ref[0][...] = jnp.zeros_like(dscale_ref[0])

    def pull(turn: prologues.Turn | None, x_ref: Ref, upstream: jax.Array, which: int, tile: int) -> jax.Array:
        if turn is None:
            return upstream
        found, dscale = turn.pull(x_ref[0, 0, span(tile)], upstream, which, span(tile), plan.epsilon)
        if dscale is not None:
            dscale_ref[0][0, 0, which] += dscale
        return found

    def add(sum_ref: Ref, first: int, tile: int, gradient: jax.Array) -> None:
        done = 0
        for back, start, end in window_plan.spans(first, tile, plan):
            sum_ref[plan.slot(i, back), start:end] += gradient[done : done + end - start]
            done += end - start

    def query(tile: int) -> jax.Array:
        return operands.query[0, 0, span(tile)] if query_ref is None else query_ref[span(tile)]

    def products(tile: int, before: int) -> tuple[jax.Array, jax.Array]:
        first = plan.first_tile(tile, before)
        if query_ref is not None:
            query_ref[span(tile)] = operands.query_rows(tile, plan)
        score = dot(operands.key_rows(ring_ref, i, first, tile, plan), query(tile), (1, 1))
        value = window_plan.rows_of(operands.values, first, tile, plan)
        return score, dot(value, dcontext_ref[0, 0, span(tile)], (1, 1))

    def finish(tile: int, before: int, found: tuple[jax.Array, jax.Array]) -> None:
        score, dweight = window_plan.capped(found[0], plan), found[1]
        dcontext = dcontext_ref[0, 0, span(tile)]
        first = plan.first_tile(tile, before)
        bias = bias_ref[tile, (plan.past - tile + first) * TILE :]
        weight = jnp.exp2(score + bias - lse_ref[0, 0, :, span(tile)])
        dscore = weight * dweight
        dscore -= weight * dscore.sum(axis=0, keepdims=True)
        if plan.soft_cap:
            capped = score * (1 / (plan.soft_cap * window_plan.LOG2_E))
            dscore *= 1 - capped * capped
        dscore = dscore.astype(dcontext.dtype)
        add(dvalue_sum_ref, first, tile, dot(weight.astype(dcontext.dtype), dcontext, (1, 0)))
        add(dkey_sum_ref, first, tile, dot(dscore, query(tile), (1, 0)))
        key = operands.key_rows(ring_ref, i, first, tile, plan)
        dquery = pull(operands.turn, operands.query, dot(dscore, key, (0, 0)) * plan.scale, prologues.QUERY, tile)
        dquery_ref[0, 0, span(tile)] = dquery.astype(dquery_ref.dtype)

    pl.when(i < plan.blocks)(lambda: window_plan.each_tile(products, finish, before_ref[0], AHEAD, plan))

    @pl.when((j == plan.heads_per_group - 1) & (i >= plan.reach))
    def _() -> None:
        slot = plan.slot(i, plan.reach)
        for tile in range(plan.tiles):
            dkey = dkey_sum_ref[slot, span(tile)] * plan.scale
            if late is not None:
                dkey = pull(late.turn, late.key, dkey, prologues.KEY, tile)
            dkey_ref[0, 0, span(tile)] = dkey.astype(dkey_ref.dtype)
            dvalue_ref[0, 0, span(tile)] = dvalue_sum_ref[slot, span(tile)].astype(dvalue_ref.dtype)
