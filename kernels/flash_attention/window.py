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
    gradient    window_gradient.py

With a prologue (norm and RoPE, kernels/prologue.py) a key block is fetched once: it goes through the prologue when its
own queries come, and stays on chip in a ring of R + 1 blocks; a tile of queries goes through it where it is used.
Heads whose halves are not whole lanes get theirs before the kernel.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from thinkfirst.kernels import prologue as prologues
from thinkfirst.kernels.flash_attention import residuals, window_gradient, window_plan

AHEAD = 2  # tiles whose products are written before this one's softmax: only then does the compiler overlap them

Plan = window_plan.Plan
Ref = window_plan.Ref
TILE = window_plan.TILE
span, dot = window_plan.span, window_plan.dot


def supports(length: int, width: int, window: int) -> bool:
    """Whether texts of `length` tokens with heads of `width` can be computed here with this window (0: all)."""
    return (
        width <= window_plan.WIDEST_HEAD
        and width % 64 == 0
        and _past_tiles(length, window) <= window_plan.MOST_PAST_TILES
    )


def attention(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segment_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int,
    soft_cap: float,
    prologue: prologues.Prologue | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "B T N H"]:
    """Context of every position, as `reference.attention`, with gradients to query, key, value and norm scales."""
    length, heads, width = query_BTNH.shape[1:]
    if not supports(length, width, window):
        most = window_plan.MOST_PAST_TILES * TILE + 1
        raise ValueError(f"windows are at most {most} keys, heads 64, 128, 192 or 256: {window=} {length=} {width=}")
    if not query_BTNH.dtype == key_BTKH.dtype == value_BTKH.dtype:
        raise ValueError(f"dtypes differ: {query_BTNH.dtype}, {key_BTKH.dtype} and {value_BTKH.dtype}")
    if prologue and not prologues.fits_lanes(width):
        query_BTNH, key_BTKH = prologues.both(prologue, query_BTNH, key_BTKH)
        prologue = None
    padding = -length % TILE
    total = (length + padding) // TILE
    past = _past_tiles(length, window)
    if query_BTNH.dtype.itemsize <= 2:
        most = window_plan.BLOCK_TILES
    else:  # twice the memory, and 16 MiB must do
        most = 2 if past <= window_plan.MOST_PAST_TILES // 2 else 1
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
        epsilon=prologue.epsilon if prologue else 0.0,
        interpret=interpret,
    )
    pads = ((0, 0), (0, padding), (0, 0), (0, 0))
    heads_first = [jnp.pad(x, pads).swapaxes(1, 2) for x in (query_BTNH, key_BTKH, value_BTKH)]
    segment = jnp.pad(segment_BT.astype(jnp.int32), pads[:2], mode="edge")
    turn = prologues.for_kernel(prologue, padding) if prologue else None
    return _attend(plan, *heads_first, segment, turn).swapaxes(1, 2)[:, :length]


def _past_tiles(length: int, window: int) -> int:
    tiles = -(-length // TILE)
    return min(-(-((window or length) - 1) // TILE), tiles - 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, *arrays: Any) -> Array:
    return _forward(plan, *arrays)[0]


def _attend_forward(plan: Plan, *arrays: Any) -> tuple[Array, tuple]:
    context, lse = residuals.named(*_forward(plan, *arrays))
    return context, (*arrays, lse)


def _attend_backward(plan: Plan, saved: tuple, dcontext: Array) -> tuple[Any, ...]:
    dquery, dkey, dvalue, dturn = window_gradient.gradient(plan, *saved, dcontext)
    return dquery, dkey, dvalue, None, dturn


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(plan: Plan, *arrays: Any) -> tuple[Array, Array]:
    """Context [B, N, T, H] and log-sum-exp [B, N, 1, T], the latter in base 2."""
    query, key, _, _, turn = arrays
    batch, heads, length, width = query.shape
    j_heads = plan.heads_per_group
    blocks = window_plan.in_blocks(plan, turn, length, width, plan.blocks - 1)
    return pl.pallas_call(
        functools.partial(_forward_kernel, plan=plan),
        grid=(batch, heads // j_heads, plan.blocks, j_heads),
        in_specs=[blocks],
        out_specs=[
            blocks.query,
            pl.BlockSpec((1, 1, 1, plan.rows), lambda b, k, i, j: (b, k * j_heads + j, 0, i)),
        ],
        scratch_shapes=[
            pltpu.SMEM((1,), jnp.int32),
            pltpu.VMEM((plan.tiles, TILE, (plan.past + 1) * TILE), jnp.float32),
            window_plan.ring(plan, turn, width, key.dtype),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        name="window_attention_forward",
        interpret=plan.interpret,
    )(window_plan.operands(plan, *arrays))


def _forward_kernel(operands: window_plan.Operands, context_ref: Ref, lse_ref: Ref, *scratch: Ref, plan: Plan) -> None:
    before_ref, bias_ref, ring_ref = scratch
    segment_ref = operands.segment
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _() -> None:
        operands.take_in(ring_ref, i, plan)
        before_ref[0] = window_plan.shared_blocks(segment_ref, i, plan)
        later = window_plan.iota(0) - window_plan.iota(1)
        for tile in range(plan.tiles):
            mine = window_plan.as_column(window_plan.segment_row(segment_ref, i * plan.tiles + tile))
            for away in range(plan.past + 1):
                theirs = window_plan.segment_row(segment_ref, i * plan.tiles + tile - away)
                at = (plan.past - away) * TILE
                bias_ref[tile, :, at : at + TILE] = window_plan.bias(mine == theirs, later, away * TILE, plan)

    def score(tile: int, before: int) -> jax.Array:
        first = plan.first_tile(tile, before)
        key = operands.key_rows(ring_ref, i, first, tile, plan)
        found = window_plan.capped(dot(operands.query_rows(tile, plan), key, (1, 1)), plan)
        return found + bias_ref[tile, :, (plan.past - tile + first) * TILE :]

    def finish(tile: int, before: int, score: jax.Array) -> None:
        value = window_plan.rows_of(operands.values, plan.first_tile(tile, before), tile, plan)
        top = score.max(axis=1, keepdims=True)
        weight = jnp.exp2(score - top)
        total = weight.sum(axis=1, keepdims=True)
        context = dot(weight.astype(value.dtype), value, (1, 0)) / total
        context_ref[0, 0, span(tile)] = context.astype(context_ref.dtype)
        lse_ref[0, 0, :, span(tile)] = jnp.broadcast_to(top + jnp.log2(total), (TILE, TILE)).T[:1]

    window_plan.each_tile(score, finish, before_ref[0], AHEAD, plan)
