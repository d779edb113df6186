"""Causal attention on TPU: online softmax over blocks of keys; blocks that no query of a row can see cost nothing.

Query block i of one key/value head meets the key blocks first(i) .. i.  first(i) follows from the window by arithmetic
on the grid position, and from `first`, a table of the earliest key block whose range of segment ids meets that of block
i.  All J query heads of a key/value head go through a key block together.  n = T / block.

Operands stand heads first, [B, N, T, H], as XLA lets a projection write them, each head of a step in its own block;
results are token-major, [B, T, N * H], which the next projection reads as well.  Neither is copied.

    forward     grid (B, K / g, n, s): g key/value heads, query block i, then key block j = i, i - 1 .. first(i)
                query [block, H] at (i), g * J times; key, value [block, H] at (j), g times
                sin, cos [block, H / 2] at (i)
                out [block, g * J * H], log-sum [g * J, block] at (i)
                carried over j: context, running maximum and sum of every query, the queries after their prologue;
                carried over i: the keys of all T tokens after their prologue
    gradient    causal_gradient.py

With a prologue (norm and RoPE, kernels/prologue.py) a key block is fetched once, in the step of the diagonal, where
queries and keys go through it once.  Heads whose halves are not whole lanes get theirs before the kernel.

Exponents are base 2.  Scores under a soft cap of at most BOUNDED need no running maximum: exp(score) and its sums
are far from the ends of float32.  The softmax is float32, its weights are rounded to the dtype of the values.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from thinkfirst.kernels import prologue as prologues
from thinkfirst.kernels.flash_attention import causal_gradient, causal_operands, causal_plan, residuals

Operands = causal_operands.Operands
Plan = causal_plan.Plan
Ref = causal_plan.Ref
VMEM = 64 * 2**20  # bytes on chip of every generation since v5; v4 has a quarter


def attention(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segment_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    prologue: prologues.Prologue | None = None,
    interpret: bool | pltpu.InterpretParams = False,
    vmem: int = VMEM,
    first: tuple[int, ...] = (),
) -> Float[Array, "B T N H"]:
    """Causal attention within segments, as reference.attention; differentiable in query, key, value and norm scales.

    `vmem` is the memory on chip in bytes: VMEM, but 16 MiB on TPU v4.  `first` fixes at compile time the earliest key
    block of every query block, for rows that are all packed alike; it must allow what `segment_BT` allows.
    """
    batch, length, heads, width = query_BTNH.shape
    if query_BTNH.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"queries are bfloat16 or float32, not {query_BTNH.dtype}")
    make = functools.partial(
        causal_plan.make,
        query_BTNH,
        key_BTKH,
        vmem=vmem,
        window=window,
        scale=scale,
        soft_cap=soft_cap,
        interpret=interpret,
        first=first,
    )
    inside = prologue and prologues.fits_lanes(width)
    plan = make(prologue=True, epsilon=prologue.epsilon) if prologue and inside else None
    if prologue and plan is None:
        query_BTNH, key_BTKH = prologues.both(prologue, query_BTNH, key_BTKH)
        prologue = None
    plan = plan or make(prologue=False, epsilon=0.0)
    if plan is None:
        raise ValueError(f"{length} tokens of {heads} heads are too many for {vmem} bytes of memory on chip")
    assert not first or len(first) == plan.blocks, (first, plan.blocks)
    padding = plan.blocks * plan.block - length

    def heads_first(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, plan.width - width))).swapaxes(1, 2)

    segment = jnp.pad(segment_BT.astype(jnp.int32), ((0, 0), (0, padding)), constant_values=-1)
    turn = prologue and prologues.for_kernel(prologue, padding)
    context = _attention(plan, *map(heads_first, (query_BTNH, key_BTKH, value_BTKH)), segment, turn)
    return context.reshape(batch, length + padding, heads, plan.width)[:, :length, :, :width]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    plan: Plan, query: Array, key: Array, value: Array, segment: Array, turn: prologues.Turn | None
) -> Array:
    return _forward(plan, plan.first_blocks(segment), query, key, value, segment, turn)[0]


def _forward(plan: Plan, *arrays: Any) -> tuple[Array, Array]:
    first, query, key, value, segment, turn = arrays
    batch, all_heads, length, width = query.shape
    block, heads = plan.block, plan.heads
    packs = all_heads // heads
    lanes = pltpu.VMEM((heads, block, causal_plan.LANES), jnp.float32)
    scratch = [pltpu.VMEM((heads, block, width), jnp.float32), lanes]
    scratch += [pltpu.VMEM((block, causal_plan.LANES), jnp.int32)] + [lanes] * (not plan.bounded)
    return pl.pallas_call(
        functools.partial(_forward_kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, packs, plan.blocks, plan.steps),
            in_specs=[causal_operands.in_blocks(plan, turn, length)],
            out_specs=[
                causal_operands.together(plan, heads, lambda first, b, i, r: i),
                pl.BlockSpec((1, 1, heads, block), lambda b, k, i, r, first: (b, k, 0, i)),
            ],
            scratch_shapes=[causal_operands.turned(plan, turn, key.dtype), *scratch],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, length, all_heads * width), query.dtype),
            jax.ShapeDtypeStruct((batch, packs, heads, length), jnp.float32),
        ],
        compiler_params=plan.compiler_params(),
        interpret=plan.interpret,
        name="causal_attention",
    )(first, causal_operands.operands(plan, query, key, value, segment, turn))


def _forward_kernel(
    first_ref: Ref, operands: Operands, out_ref: Ref, log_sum_ref: Ref, turned: causal_operands.Turned | None,
    context_ref: Ref, sum_ref: Ref, column_ref: Ref, *maximum_ref: Ref, plan: Plan,
) -> None:  # fmt: skip
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    j, first = i - step, plan.first_key_block(first_ref, b, i)
    segment_ref = operands.segment

    def score(head: int, rows: slice, keys: slice, *, diagonal: bool) -> Array:
        query = operands.query_rows(turned, head, rows)
        key = operands.key_rows(turned, plan.group(head), j, keys)
        score = plan.exponent(causal_plan.dot(query, key, causal_plan.ROWS_ROWS))
        segments = causal_plan.wide(column_ref[rows, :], score.shape[1]), segment_ref[0, :, plan.positions(j, keys)]
        distance = (i - j) * plan.block + rows.start - keys.start
        return plan.hide(score, segments, distance, query_axis=0, diagonal=diagonal)

    def begin(score: Array, head: int, rows: slice, keys: slice) -> None:
        if not plan.bounded:
            top = jnp.broadcast_to(score.max(axis=1, keepdims=True), (score.shape[0], causal_plan.LANES))
            maximum_ref[0][head, rows, :] = top
            score = score - causal_plan.wide(top, score.shape[1])
        weight = jnp.exp2(score)
        value = operands.value[plan.group(head)][0, 0, keys]
        context_ref[head, rows, :] = causal_plan.dot(weight.astype(value.dtype), value, causal_plan.ROWS_COLUMNS)
        sum_ref[head, rows, :] = causal_plan.lane_sum(weight)

    def add(score: Array, head: int, rows: slice, keys: slice) -> None:
        context, total = context_ref[head, rows, :], sum_ref[head, rows, :]
        if not plan.bounded:
            before = maximum_ref[0][head, rows, :]
            top = jnp.maximum(before, score.max(axis=1, keepdims=True))
            maximum_ref[0][head, rows, :] = top
            score = score - causal_plan.wide(top, score.shape[1])
            fade = jnp.exp2(before - top)
            context, total = context * causal_plan.wide(fade, plan.width), total * fade
        weight = jnp.exp2(score)
        value = operands.value[plan.group(head)][0, 0, keys]
        context_ref[head, rows, :] = context + causal_plan.dot(
            weight.astype(value.dtype), value, causal_plan.ROWS_COLUMNS
        )
        sum_ref[head, rows, :] = total + causal_plan.lane_sum(weight)

    def sweep(tiles: list, fold: Callable, *, diagonal: bool) -> None:
        """Products of the next tile stand before the softmax of this one, so that both units have work."""
        ahead = score(*tiles[0], diagonal=diagonal)
        for tile, following in zip(tiles, [*tiles[1:], None], strict=True):
            this, ahead = ahead, following and score(*following, diagonal=diagonal)
            fold(this, *tile)

    @pl.when(step == 0)
    def present() -> None:
        operands.take_in(turned, i, plan)
        column_ref[...] = causal_plan.column(segment_ref[0, :, plan.positions(i)])
        rows = [slice(start, start + causal_plan.LANES) for start in range(0, plan.block, causal_plan.LANES)]
        tiles = [(head, own, slice(0, own.stop)) for own in rows for head in range(plan.heads)]
        sweep(tiles, begin, diagonal=True)

    @pl.when((j >= first) & (j < i))
    def past() -> None:
        everything = slice(0, plan.block)
        sweep([(head, everything, everything) for head in range(plan.heads)], add, diagonal=False)

    @pl.when(j == first)
    def finish() -> None:
        # The sums and maxima of head n stand in lane n of one array, whose logarithm is taken once.
        lane = jax.lax.broadcasted_iota(jnp.int32, sum_ref.shape[1:], 1)
        sums, tops = jnp.ones(lane.shape, jnp.float32), jnp.zeros(lane.shape, jnp.float32)
        for head in range(plan.heads):
            total = jnp.broadcast_to(sum_ref[head].sum(axis=1, keepdims=True), lane.shape)
            sums = jnp.where(lane == head, total, sums)
            for ref in maximum_ref:
                tops = jnp.where(lane == head, ref[head], tops)
            context = context_ref[head] * causal_plan.wide(causal_plan.reciprocal(total), plan.width)
            out_ref[0, :, plan.columns(head)] = context.astype(out_ref.dtype)
        log_sum_ref[0, 0] = (tops + jnp.log2(sums)).T[: plan.heads]


def _attention_forward(
    plan: Plan, query: Array, key: Array, value: Array, segment: Array, turn: prologues.Turn | None
) -> tuple[Array, tuple]:
    first = plan.first_blocks(segment)
    context, log_sum = residuals.named(*_forward(plan, first, query, key, value, segment, turn))
    return context, (first, query, key, value, segment, turn, context, log_sum)


def _attention_backward(plan: Plan, saved: tuple, upstream: Array) -> tuple[Any, ...]:
    d_query, d_key, d_value, d_turn = causal_gradient.gradient(plan, *saved, upstream)
    return d_query, d_key, d_value, None, d_turn


_attention.defvjp(_attention_forward, _attention_backward)
