"""The gradient of causal attention on TPU: one sweep in the order of the forward pass, no partial sums in HBM.

    grid (B, K, n, n): query block i, then key block j = first(i) .. i; n = T / block, blocks above are not visited
    query, context, upstream, d query [block, J * H] at (i); key, value [block, H] at (j); log-sum [J, block] at (i)
    d key, d value [block, H] at (j), written in the last row of blocks, i = n - 1
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


def gradient(plan: causal_plan.Plan, interpret: object, *operands: Array) -> tuple[Array, Array, Array]:
    """Gradients of query, key and value from first blocks, query, key, value, segment, context, log-sum and upstream gradient."""
    first, query, key, value, segment, context, log_sum, upstream = operands
    batch, block, blocks, heads, width = query.shape[0], plan.block, plan.blocks, plan.heads, plan.width
    own = pl.BlockSpec((1, block, heads * width), lambda b, k, i, r, first: (b, plan.query_block(first, b, i, r), k))
    past = pl.BlockSpec((1, block, width), lambda b, k, i, r, first: (b, plan.key_block(first, b, i, r), k))
    written = pl.BlockSpec((1, block, heads * width), lambda b, k, i, r, first: (b, i, k))
    last = pl.BlockSpec((1, block, width), lambda b, k, i, r, _: (b, blocks - 1 - jnp.where(i == blocks - 1, r, 0), k))
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, plan.groups, blocks, blocks),
            in_specs=[
                own,
                past,
                past,
                own,
                own,
                pl.BlockSpec((1, 1, heads, block), lambda b, k, i, r, first: (b, k, 0, i)),
                pl.BlockSpec((1, 1, block), lambda b, k, i, r, first: (b, 0, i)),
                pl.BlockSpec((1, 1, block), lambda b, k, i, r, first: (b, 0, plan.key_block(first, b, i, r))),
            ],
            out_specs=[written, last, last],
            scratch_shapes=[
                pltpu.VMEM((heads, width, block), jnp.float32),
                pltpu.VMEM((blocks, block, width), jnp.float32),
                pltpu.VMEM((blocks, block, width), jnp.float32),
                pltpu.VMEM((blocks, width, block), key.dtype),
                pltpu.VMEM((blocks, block, causal_plan.LANES), jnp.int32),
                pltpu.VMEM((heads, block), jnp.float32),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)],
        compiler_params=plan.compiler_params(),
        interpret=interpret,
        name="causal_attention_gradient",
    )(first, query, key, value, context, upstream, log_sum, *[segment[:, None]] * 2)


def _kernel(
    first_ref, query_ref, key_ref, value_ref, context_ref, upstream_ref, log_sum_ref, own_segment_ref, segment_ref,
    d_query_ref, d_key_ref, d_value_ref,
    d_query_side_ref, d_key_sum_ref, d_value_sum_ref, key_side_ref, column_ref, delta_ref, *, plan,
):  # fmt: skip
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    j, first = i - step, plan.first_key_block(first_ref, b, i)
    columns = [slice(head * plan.width, (head + 1) * plan.width) for head in range(plan.heads)]

    @pl.when(step == 0)
    def start() -> None:
        key_side_ref[j] = key_ref[0].astype(jnp.float32).T.astype(key_side_ref.dtype)
        column_ref[j] = causal_plan.column(segment_ref[0])
        d_key_sum_ref[j] = jnp.zeros(d_key_sum_ref.shape[1:], jnp.float32)
        d_value_sum_ref[j] = jnp.zeros(d_value_sum_ref.shape[1:], jnp.float32)
        d_query_side_ref[...] = jnp.zeros_like(d_query_side_ref)
        for head, own in enumerate(columns):
            product = context_ref[0, :, own].astype(jnp.float32) * upstream_ref[0, :, own].astype(jnp.float32)
            delta_ref[head : head + 1, :] = causal_plan.lane_sum(product).T.sum(axis=0, keepdims=True)

    def fold(head: int, keys: slice, rows: slice, *, diagonal: bool) -> None:
        query, upstream = query_ref[0, rows, columns[head]], upstream_ref[0, rows, columns[head]]
        exponent = plan.exponent(causal_plan.dot(key_ref[0, keys, :], query, causal_plan.ROWS_ROWS))
        segments = causal_plan.wide(column_ref[j, keys, :], exponent.shape[1]), own_segment_ref[0, :, rows]
        distance = (i - j) * plan.block + rows.start - keys.start
        score = plan.hide(exponent, segments, distance, query_axis=1, diagonal=diagonal)
        weight = jnp.exp2(score - log_sum_ref[0, 0, head : head + 1, rows])
        d_value_sum_ref[j, keys, :] += causal_plan.dot(
            weight.astype(upstream.dtype), upstream, causal_plan.ROWS_COLUMNS
        )
        d_weight = causal_plan.dot(value_ref[0, keys, :], upstream, causal_plan.ROWS_ROWS)
        d_score = weight * (d_weight - delta_ref[head : head + 1, rows])
        if plan.soft_cap:
            d_score = d_score * plan.slope(exponent)
        d_score = d_score.astype(query.dtype)
        d_key_sum_ref[j, keys, :] += causal_plan.dot(d_score, query, causal_plan.ROWS_COLUMNS)
        d_query_side_ref[head, :, rows] += causal_plan.dot(key_side_ref[j, :, keys], d_score, causal_plan.ROWS_COLUMNS)

    @pl.when(step == 0)
    def present() -> None:
        for start in range(0, plan.block, plan.tile):
            for head in range(plan.heads):
                fold(head, slice(start, start + plan.tile), slice(start, plan.block), diagonal=True)

    @pl.when((j >= first) & (j < i))
    def past() -> None:
        for head in range(plan.heads):
            fold(head, slice(0, plan.block), slice(0, plan.block), diagonal=False)

    @pl.when(j == first)
    def finish_row() -> None:
        for head, own in enumerate(columns):
            d_query_ref[0, :, own] = (d_query_side_ref[head] * plan.scale).T.astype(d_query_ref.dtype)

    @pl.when(i == plan.blocks - 1)
    def finish_column() -> None:
        d_key_ref[0] = (d_key_sum_ref[j] * plan.scale).astype(d_key_ref.dtype)
        d_value_ref[0] = d_value_sum_ref[j].astype(d_value_ref.dtype)
