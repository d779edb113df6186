"""The gradient of causal attention on TPU: one sweep in the order of the forward pass, no partial sums in HBM.

    grid (B, K / g, n, s): g key/value heads, query block i, then key block j = i, i - 1 .. first(i)
    query, context, upstream, d query [block, g * J * H] at (i); key, value [block, g * H] at (j)
    log-sum [g * J, block] at (i); d key, d value [block, g * H] at (j), written in the last row that sees block j
    carried over j: d query of block i, transposed; over i: d key and d value of all T tokens, in float32, and what is
    made once per key block: its transpose, its segment ids as a column

A tile of scores stands on its side, keys by queries: log-sums and the like are rows, which cost nothing to spread over
keys, and of the five products only d query^T = key^T (d score) would need a transpose: that of the key.

    weight = exp2(exponent(k q) - log_sum)              d value += weight u
    d score = weight (v u - delta) slope                d key += scale (d score) q       delta = sum(context u)
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from thinkfirst.kernels.flash_attention import causal_plan

Ref = causal_plan.Ref


def gradient(plan: causal_plan.Plan, *operands: Array) -> tuple[Array, Array, Array]:
    """Gradients of query, key and value; `operands` are what _attention_forward saves, then the upstream gradient."""
    first, query, key, value, segment, context, log_sum, upstream = operands
    batch, length, _ = query.shape
    block, blocks, heads, width = plan.block, plan.blocks, plan.heads, plan.width
    wide = plan.groups * width
    own = pl.BlockSpec((1, block, heads * width), lambda b, k, i, r, first: (b, plan.query_block(first, b, i, r), k))
    past = pl.BlockSpec((1, block, wide), lambda b, k, i, r, first: (b, plan.key_block(first, b, i, r), k))
    written = pl.BlockSpec((1, block, heads * width), lambda b, k, i, r, first: (b, i, k))
    complete = pl.BlockSpec((1, block, wide), lambda b, k, i, r, first: (b, _complete_block(plan, i, r), k))
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, query.shape[2] // (heads * width), blocks, plan.steps),
            in_specs=[
                own,
                past,
                past,
                own,
                own,
                pl.BlockSpec((1, 1, heads, block), lambda b, k, i, r, first: (b, k, 0, i)),
                pl.BlockSpec((1, 1, length), lambda b, k, i, r, first: (b, 0, 0)),
            ],
            out_specs=[written, complete, complete],
            scratch_shapes=[
                pltpu.VMEM((heads, width, block), jnp.float32),
                pltpu.VMEM((blocks, block, wide), jnp.float32),
                pltpu.VMEM((blocks, block, wide), jnp.float32),
                pltpu.VMEM((blocks, wide, block), key.dtype),
                pltpu.VMEM((blocks, block, causal_plan.LANES), jnp.int32),
                pltpu.VMEM((heads, block), jnp.float32),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)],
        compiler_params=plan.compiler_params(),
        interpret=plan.interpret,
        name="causal_attention_gradient",
    )(first, query, key, value, context, upstream, log_sum, segment[:, None])


def _complete_block(plan: causal_plan.Plan, i: Array, r: Array) -> Array:
    """The key block that block `i` is the last to see, or while there is none the one that comes first."""
    back = plan.steps - 1
    if back == plan.blocks - 1:
        return jnp.where(i == plan.blocks - 1, i - r, plan.blocks - 1)
    return jnp.where(i == plan.blocks - 1, i - r, jnp.maximum(i - back, 0))


def _kernel(
    first_ref: Ref, query_ref: Ref, key_ref: Ref, value_ref: Ref, context_ref: Ref, upstream_ref: Ref, log_sum_ref: Ref,
    segment_ref: Ref, d_query_ref: Ref, d_key_ref: Ref, d_value_ref: Ref,
    d_query_side_ref: Ref, d_key_sum_ref: Ref, d_value_sum_ref: Ref, key_side_ref: Ref, column_ref: Ref, delta_ref: Ref,
    *, plan: causal_plan.Plan,
) -> None:  # fmt: skip
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    j, first = i - step, plan.first_key_block(first_ref, b, i)

    @pl.when(step == 0)
    def start() -> None:
        key_side_ref[j] = key_ref[0].astype(jnp.float32).T.astype(key_side_ref.dtype)
        column_ref[j] = causal_plan.column(segment_ref[0, :, plan.positions(i)])
        d_key_sum_ref[j] = jnp.zeros(d_key_sum_ref.shape[1:], jnp.float32)
        d_value_sum_ref[j] = jnp.zeros(d_value_sum_ref.shape[1:], jnp.float32)
        d_query_side_ref[...] = jnp.zeros_like(d_query_side_ref)
        for head in range(plan.heads):
            context, upstream = (ref[0, :, plan.head(head)].astype(jnp.float32) for ref in (context_ref, upstream_ref))
            delta = causal_plan.lane_sum(context * upstream)
            delta_ref[head : head + 1, :] = delta.T.sum(axis=0, keepdims=True)

    def fold(head: int, keys: slice, rows: slice, *, diagonal: bool) -> None:
        group = plan.group(head)
        query, upstream = query_ref[0, rows, plan.head(head)], upstream_ref[0, rows, plan.head(head)]
        exponent = plan.exponent(causal_plan.dot(key_ref[0, keys, group], query, causal_plan.ROWS_ROWS))
        segments = (
            causal_plan.wide(column_ref[j, keys, :], exponent.shape[1]),
            segment_ref[0, :, plan.positions(i, rows)],
        )
        distance = (i - j) * plan.block + rows.start - keys.start
        score = plan.hide(exponent, segments, distance, query_axis=1, diagonal=diagonal)
        weight = jnp.exp2(score - log_sum_ref[0, 0, head : head + 1, rows])
        d_value_sum_ref[j, keys, group] += causal_plan.dot(
            weight.astype(upstream.dtype), upstream, causal_plan.ROWS_COLUMNS
        )
        d_weight = causal_plan.dot(value_ref[0, keys, group], upstream, causal_plan.ROWS_ROWS)
        d_score = weight * (d_weight - delta_ref[head : head + 1, rows])
        if plan.soft_cap:
            d_score = d_score * plan.slope(exponent)
        d_score = d_score.astype(query.dtype)
        d_key_sum_ref[j, keys, group] += causal_plan.dot(d_score, query, causal_plan.ROWS_COLUMNS)
        d_query_side_ref[head, :, rows] += causal_plan.dot(
            key_side_ref[j, group, keys], d_score, causal_plan.ROWS_COLUMNS
        )

    @pl.when(step == 0)
    def present() -> None:
        for start in range(0, plan.block, causal_plan.LANES):
            for head in range(plan.heads):
                fold(head, slice(start, start + causal_plan.LANES), slice(start, plan.block), diagonal=True)

    @pl.when((j >= first) & (j < i))
    def past() -> None:
        for head in range(plan.heads):
            fold(head, slice(0, plan.block), slice(0, plan.block), diagonal=False)

    @pl.when(j == first)
    def finish_row() -> None:
        for head in range(plan.heads):
            d_query_ref[0, :, plan.head(head)] = (d_query_side_ref[head] * plan.scale).T.astype(d_query_ref.dtype)

    @pl.when((i == plan.blocks - 1) | ((step == plan.steps - 1) & (j >= 0)))
    def finish_column() -> None:
        d_key_ref[0] = (d_key_sum_ref[j] * plan.scale).astype(d_key_ref.dtype)
        d_value_ref[0] = d_value_sum_ref[j].astype(d_value_ref.dtype)
