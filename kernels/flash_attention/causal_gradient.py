"""The gradient of causal attention on TPU: one sweep in the order of the forward pass, no partial sums in HBM.

    grid (B, K / g, n, s): g key/value heads, query block i, then key block j = i, i - 1 .. first(i)
    query, upstream [block, H] at (i), g * J times; key, value [block, H] at (j), g times
    context, d query [block, g * J * H], log-sum [g * J, block], sin, cos [block, H / 2] at (i)
    d key, d value [block, g * H] at (j), written in the last row that sees block j
    carried over j: d query of block i, transposed; over i: d key and d value of all T tokens, in float32, and what is
    made once per key block: its transpose, its segment ids as a column

A tile of scores stands on its side, keys by queries: log-sums and the like are rows, which cost nothing to spread over
keys, and of the five products only d query^T = key^T (d score) would need a transpose: that of the key.

    weight = exp2(exponent(k q) - log_sum)              d value += weight u
    d score = weight (v u - delta) slope                d key += scale (d score) q       delta = sum(context u)

With a prologue queries and keys go through it as in the forward pass.  Where d query and d key are complete they are
pulled back through it, d key with the key, sine and cosine of its block, which then are at hand a second time; the
gradients of the norm scales are summed over all steps of a key/value head, eight rows each.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from thinkfirst.kernels import prologue as prologues
from thinkfirst.kernels.flash_attention import causal_operands, causal_plan

Plan = causal_plan.Plan
Ref = causal_plan.Ref


def gradient(plan: Plan, *saved: Any) -> tuple[Array, Array, Array, prologues.Turn | None]:
    """Gradients of query, key, value and prologue from what _attention_forward saves and the upstream gradient."""
    first, query, key, value, segment, turn, context, log_sum, upstream = saved
    batch, all_heads, length, width = query.shape
    block, blocks, heads, groups = plan.block, plan.blocks, plan.heads, plan.groups
    packs = all_heads // heads
    each_head, together = causal_operands.each_head, causal_operands.together
    upstream = upstream.reshape(batch, length, all_heads, width).swapaxes(1, 2)

    def complete(first: Ref, b: Array, i: Array, r: Array) -> Array:
        return _complete_block(plan, i, r)

    sums = pltpu.VMEM((blocks, groups, block, width), jnp.float32)
    scratch = [
        pltpu.VMEM((heads, width, block), jnp.float32),
        *(sums, sums),
        pltpu.VMEM((blocks, groups, width, block), key.dtype),
        pltpu.VMEM((blocks, block, causal_plan.LANES), jnp.int32),
        pltpu.VMEM((heads, block), jnp.float32),
    ]
    normed = turn is not None and bool(turn.scales)
    out_specs = [together(plan, heads, lambda first, b, i, r: i), *[together(plan, groups, complete)] * 2]
    out_shape = [jax.ShapeDtypeStruct((batch, length, x.shape[1] * width), x.dtype) for x in (query, key, value)]
    if normed:
        out_specs.append(pl.BlockSpec((1, 1, 2, 8, width), lambda b, k, i, r, first: (b, k, 0, 0, 0)))
        out_shape.append(jax.ShapeDtypeStruct((batch, packs, 2, 8, width), jnp.float32))
    late = None
    if turn is not None:
        late = causal_operands.Late(each_head(plan, groups, complete), causal_operands.angles(plan, turn, complete))
    results = pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, packs, blocks, plan.steps),
            in_specs=[
                causal_operands.in_blocks(plan, turn, length),
                each_head(plan, heads, plan.query_block),
                together(plan, heads, plan.query_block),
                pl.BlockSpec((1, 1, heads, block), lambda b, k, i, r, first: (b, k, 0, i)),
                late,
            ],
            out_specs=out_specs,
            scratch_shapes=[causal_operands.turned(plan, turn, key.dtype), *scratch],
        ),
        out_shape=out_shape,
        compiler_params=plan.compiler_params(),
        interpret=plan.interpret,
        name="causal_attention_gradient",
    )(
        first,
        causal_operands.operands(plan, query, key, value, segment, turn),
        (upstream,) * heads,
        *(context, log_sum),
        turn and causal_operands.Late((key,) * groups, turn),
    )
    d_query, d_key, d_value = (x.reshape(batch, length, -1, width).swapaxes(1, 2) for x in results[:3])
    return d_query, d_key, d_value, turn and turn.gradient(*results[3:])


def _complete_block(plan: Plan, i: Array, r: Array) -> Array:
    """The key block that block `i` is the last to see, or while there is none the one that comes first."""
    back = plan.steps - 1
    if back == plan.blocks - 1:
        return jnp.where(i == plan.blocks - 1, i - r, plan.blocks - 1)
    return jnp.where(i == plan.blocks - 1, i - r, jnp.maximum(i - back, 0))


def _kernel(
    first_ref: Ref, operands: causal_operands.Operands, upstream_refs: Ref, context_ref: Ref, log_sum_ref: Ref,
    late: causal_operands.Late | None, d_query_ref: Ref, d_key_ref: Ref, d_value_ref: Ref, *refs: Any, plan: Plan,
) -> None:  # fmt: skip
    *d_scale_ref, turned, d_query_side_ref, d_key_sum_ref, d_value_sum_ref, key_side_ref, column_ref, delta_ref = refs
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    j, first = i - step, plan.first_key_block(first_ref, b, i)
    segment_ref, everything = operands.segment, slice(0, plan.block)

    @pl.when(step == 0)
    def start() -> None:
        operands.take_in(turned, i, plan)
        for group in range(plan.groups):
            key = operands.key_rows(turned, group, i, everything)
            key_side_ref[i, group] = key.astype(jnp.float32).T.astype(key_side_ref.dtype)
        column_ref[i] = causal_plan.column(segment_ref[0, :, plan.positions(i)])
        d_key_sum_ref[i] = jnp.zeros(d_key_sum_ref.shape[1:], jnp.float32)
        d_value_sum_ref[i] = jnp.zeros(d_value_sum_ref.shape[1:], jnp.float32)
        d_query_side_ref[...] = jnp.zeros_like(d_query_side_ref)
        for head, upstream_ref in enumerate(upstream_refs):
            context = context_ref[0, :, plan.columns(head)].astype(jnp.float32)
            delta = causal_plan.lane_sum(context * upstream_ref[0, 0].astype(jnp.float32))
            delta_ref[head : head + 1, :] = delta.T.sum(axis=0, keepdims=True)

    def fold(head: int, keys: slice, rows: slice, *, diagonal: bool) -> None:
        group = plan.group(head)
        query, upstream = operands.query_rows(turned, head, rows), upstream_refs[head][0, 0, rows]
        key, value = operands.key_rows(turned, group, j, keys), operands.value[group][0, 0, keys]
        exponent = plan.exponent(causal_plan.dot(key, query, causal_plan.ROWS_ROWS))
        segments = (
            causal_plan.wide(column_ref[j, keys, :], exponent.shape[1]),
            segment_ref[0, :, plan.positions(i, rows)],
        )
        distance = (i - j) * plan.block + rows.start - keys.start
        score = plan.hide(exponent, segments, distance, query_axis=1, diagonal=diagonal)
        weight = jnp.exp2(score - log_sum_ref[0, 0, head : head + 1, rows])
        d_value_sum_ref[j, group, keys] += causal_plan.dot(
            weight.astype(upstream.dtype), upstream, causal_plan.ROWS_COLUMNS
        )
        d_weight = causal_plan.dot(value, upstream, causal_plan.ROWS_ROWS)
        d_score = weight * (d_weight - delta_ref[head : head + 1, rows])
        if plan.soft_cap:
            d_score = d_score * plan.slope(exponent)
        d_score = d_score.astype(query.dtype)
        d_key_sum_ref[j, group, keys] += causal_plan.dot(d_score, query, causal_plan.ROWS_COLUMNS)
        d_query_side_ref[head, :, rows] += causal_plan.dot(
            key_side_ref[j, group, :, keys], d_score, causal_plan.ROWS_COLUMNS
        )

    @pl.when(step == 0)
    def present() -> None:
        for start in range(0, plan.block, causal_plan.LANES):
            for head in range(plan.heads):
                fold(head, slice(start, start + causal_plan.LANES), slice(start, plan.block), diagonal=True)

    @pl.when((j >= first) & (j < i))
    def past() -> None:
        for head in range(plan.heads):
            fold(head, everything, everything, diagonal=False)

    if d_scale_ref:

        @pl.when((i == 0) & (step == 0))
        def no_scale_yet() -> None:
            d_scale_ref[0][...] = jnp.zeros_like(d_scale_ref[0])

    def pull(of: Any, x_ref: Ref, upstream: Array, which: int, rows: slice) -> Array:
        if of.turn is None:
            return upstream
        found, d_scale = of.turn.pull(x_ref[0, 0, rows], upstream, which, rows, plan.epsilon)
        if d_scale is not None:
            d_scale_ref[0][0, 0, which] += d_scale
        return found

    @pl.when(j == first)
    def finish_row() -> None:
        for head in range(plan.heads):
            for rows in plan.tiles():
                d_query = (d_query_side_ref[head, :, rows] * plan.scale).T
                d_query = pull(operands, operands.query[head], d_query, prologues.QUERY, rows)
                d_query_ref[0, rows, plan.columns(head)] = d_query.astype(d_query_ref.dtype)

    @pl.when((i == plan.blocks - 1) | ((step == plan.steps - 1) & (j >= 0)))
    def finish_column() -> None:
        for group in range(plan.groups):
            for rows in plan.tiles():
                d_key = d_key_sum_ref[j, group, rows] * plan.scale
                if late is not None:
                    d_key = pull(late, late.key[group], d_key, prologues.KEY, rows)
                d_key_ref[0, rows, plan.columns(group)] = d_key.astype(d_key_ref.dtype)
                d_value = d_value_sum_ref[j, group, rows]
                d_value_ref[0, rows, plan.columns(group)] = d_value.astype(d_value_ref.dtype)
