"""The sweep on TPU: hidden states against the table like attention whose keys and values are both the table (Pallas).

Grid (token blocks, vocabulary blocks), the second walked in order.  Blocks, with t tokens and v words in each:

    inverse temperature, times log2 e     [1]        SMEM
    hidden_TD                             [t, D]     stays for a row of the grid
    table_VD                              [v, D]     streamed; read once for every block of tokens
    table_VD                              [V, D]     in HBM, for the tokens' own rows
    token_T                               [1, 1, t]  SMEM, for where those rows are
    token_T                               [1, t]     for which of a pair of rows it is
    least_T (when words are dropped)      [t, 128]   every lane the same
    -> lse, entropy, the token's logit    [8, t]     in the first three rows
    -> slope_TD, tilt_TD (when asked for) [t, D]     float32, sums of rows until the last step

Carried over the vocabulary, in scratch [t, 128]: the running maximum (every lane the same), the sum of exp2 and the sum
of exp2 times distance from the maximum (a part per lane, added up in the last step); and the outputs [t, D] themselves.
The tokens' own rows are copied from HBM meanwhile, some in each step, for the last one: to find a token's logit among
those of the sweep would cost more.  A row of bfloat16 comes with its neighbour: a row of 32-bit words holds the two.
Logits are in bits (exp2 costs a product less than exp).  A vocabulary block is worked through in sub-blocks, each one's
logits computed before the softmax of the one before it, so that the two overlap.  The words beyond the end of the table
in its last block are masked.
"""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from thinkfirst.kernels import blocks, placement
from thinkfirst.kernels.token_logprob import streamed

LANES = 128
ROWS = 16  # sublanes of a bfloat16 tile
NOTHING = -1e30  # logit of a dropped word; finite, so that 0 times it is 0
LOG2_E = math.log2(math.e)
COMPILED_VMEM_BYTES = 64 * 2**20  # where there is no TPU to ask: v5e and v6e have twice that, v4 a quarter
INTERPRETED = pltpu.InterpretParams(detect_races=True)  # a CPU runs the kernel; memory not yet written is NaN


def unsupported(width: int, size: int, item_bytes: int) -> str:
    """Why a table [size, width] of such items cannot be swept; empty if it can."""
    if width % LANES:
        return f"the width must be a multiple of {LANES}, not {width}"
    if item_bytes not in (2, 4) or size * item_bytes % 4:
        return f"rows of {item_bytes}-byte numbers are copied by the {4 // item_bytes}, the table has {size}"
    return "" if size >= LANES else f"the vocabulary must have at least {LANES} words, not {size}"


def sweep(
    hidden_TD: Float[Array, "T D"],
    table_VD: Float[Array, "V D"],
    token_T: Int[Array, "T"],
    least_T: Float[Array, "T"] | None,
    *,
    temperature: Float[Array, ""],
    soft_cap: float,
    moments: int,
    own: bool,
    block_T: int | None = None,
    block_V: int | None = None,
    sub_block: int | None = None,
    vmem_bytes: int | None = None,
    interpret: Any = False,
) -> streamed.Swept:
    """`streamed.Sweep` by one Pallas call.

    Blocks, by default those found best, are halved until they fit in `vmem_bytes`, by default what the chip has.
    """
    reason = unsupported(hidden_TD.shape[1], table_VD.shape[0], table_VD.dtype.itemsize)
    if reason:
        raise ValueError(f"token_logprob on TPU: {reason}")
    real, width = hidden_TD.shape
    size = table_VD.shape[0]
    length = _round_up(real, ROWS)
    hidden_TD = jnp.pad(hidden_TD, ((0, length - real), (0, 0)))
    if vmem_bytes is None:
        on_tpu = placement.platform() == "tpu"
        vmem_bytes = pltpu.get_tpu_info().vmem_capacity_bytes if on_tpu else COMPILED_VMEM_BYTES
    shapes = f"width {width} {table_VD.dtype}, {moments} moments"
    found = blocks.sizes("token_logprob", shapes, {"block_T": 512, "block_V": 1024, "sub_block": 256})
    block_T, sub_block = block_T or found["block_T"], sub_block or found["sub_block"]
    block_V = min(block_V or found["block_V"], size // LANES * LANES)
    while _vmem(block_T, block_V, hidden_TD, table_VD, moments) > vmem_bytes and max(block_T, block_V) > LANES:
        block_T, block_V = (block_T, block_V // 2) if block_V > 2 * LANES else (block_T // 2, block_V)
    block_T = _round_up(pl.cdiv(length, pl.cdiv(length, block_T)), ROWS if length <= block_T else LANES)
    block_V = _round_up(block_V, LANES)
    sub_block = sub_block if block_V % sub_block == 0 else block_V
    grid = pl.cdiv(length, block_T), pl.cdiv(size, block_V)
    packing, per_step = 4 // table_VD.dtype.itemsize, pl.cdiv(block_T, grid[1])
    fetching = pl.cdiv(block_T, per_step)  # steps that fetch rows
    word_T = jnp.pad(token_T.astype(jnp.int32), (0, grid[0] * block_T - real)).reshape(grid[0], 1, block_T)
    word_T = jnp.pad(word_T, ((0, 0), (0, 0), (0, fetching * per_step - block_T)))
    lanes = _round_up(block_T, LANES)
    per_state = pl.BlockSpec((block_T, width), lambda i, j: (i, 0))
    inputs = [
        (LOG2_E / temperature).astype(jnp.float32).reshape(1),
        hidden_TD,
        table_VD,
        table_VD,
        word_T,
        jnp.pad(token_T.astype(jnp.int32), (0, grid[0] * lanes - real)).reshape(1, -1),
    ]
    in_specs = [
        pl.BlockSpec(memory_space=pltpu.SMEM),
        per_state,
        pl.BlockSpec((block_V, width), lambda i, j: (j, 0)),
        pl.BlockSpec(memory_space=pl.ANY),
        pl.BlockSpec((1, 1, fetching * per_step), lambda i, j: (i, 0, 0), memory_space=pltpu.SMEM),
        pl.BlockSpec((1, lanes), lambda i, j: (0, i)),
    ]
    if least_T is not None:
        least_T = jnp.pad(least_T * LOG2_E, (0, length - real))
        inputs.append(jnp.broadcast_to(least_T[:, None], (length, LANES)))
        in_specs.append(pl.BlockSpec((block_T, LANES), lambda i, j: (i, 0)))
    outcome, *sums = pl.pallas_call(
        functools.partial(
            _kernel,
            soft_cap=soft_cap,
            moments=moments,
            dropping=least_T is not None,
            own=own,
            per_step=per_step,
            all_fetch=fetching == grid[1],
            sub_block=sub_block,
            size=size,
        ),
        grid=grid,
        in_specs=in_specs,
        out_specs=[pl.BlockSpec((8, lanes), lambda i, j: (0, i))] + [per_state] * moments,
        out_shape=[jax.ShapeDtypeStruct((8, grid[0] * lanes), jnp.float32)]
        + [jax.ShapeDtypeStruct((length, width), jnp.float32)] * moments,
        scratch_shapes=[pltpu.VMEM((block_T, LANES), jnp.float32)] * 3
        + [pltpu.VMEM((fetching * per_step * packing, width), table_VD.dtype), pltpu.SemaphoreType.DMA],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=vmem_bytes,
            disable_bounds_checks=True,  # of the copies of rows, whose places are clipped: some 38 cycles each
        ),
        interpret=interpret,
        name=("token_logprob_forward", "token_logprob", "token_logprob_tilt")[moments],
    )(*inputs)
    return streamed.Swept(*outcome[:3, :real], *(*(rows_TD[:real] for rows_TD in sums), None, None)[:2])


class _Refs(NamedTuple):
    """What a step of the kernel reads, writes and carries."""

    scale: Any
    hidden: Any
    table: Any
    far_table: Any
    word: Any
    token: Any
    least: Any
    outcome: Any
    sums: tuple[Any, ...]
    peak: Any
    total: Any
    lean: Any
    own_rows: Any
    arrived: Any


def _kernel(
    *refs: Any,
    soft_cap: float,
    moments: int,
    dropping: bool,
    own: bool,
    per_step: int,
    all_fetch: bool,
    sub_block: int,
    size: int,
) -> None:
    left = iter(refs)
    inputs = [next(left) for _ in range(6)]
    least_ref = next(left) if dropping else None
    outcome_ref, *sums = (next(left) for _ in range(1 + moments))
    of = _Refs._make([*inputs, least_ref, outcome_ref, tuple(sums), *left])
    step, last = pl.program_id(1), pl.num_programs(1) - 1
    rest = size % of.table.shape[0]

    @pl.when(step == 0)
    def start() -> None:
        of.peak[...] = jnp.full_like(of.peak, NOTHING / 2)
        for ref in (of.total, of.lean, *of.sums):
            ref[...] = jnp.zeros_like(ref)

    def whole_block() -> None:
        _fetch(of, per_step, all_fetch)
        ahead = _product(of, 0, sub_block, sub_block)
        for begin in range(sub_block, of.table.shape[0] + sub_block, sub_block):
            product = ahead
            if begin < of.table.shape[0]:  # written before the softmax that it shall overlap with
                ahead = _product(of, begin, sub_block, sub_block)
            _absorb(of, *product, sub_block, soft_cap=soft_cap)

    def part_of_a_block() -> None:
        _fetch(of, per_step, all_fetch)
        _absorb(of, *_product(of, 0, _round_up(rest, LANES), rest), rest, soft_cap=soft_cap)

    if rest:
        pl.when(step != last)(whole_block)
        pl.when(step == last)(part_of_a_block)
    else:
        whole_block()

    @pl.when(step == last)
    def finish() -> None:
        _finish(of, soft_cap=soft_cap, own=own, size=size)


def _fetch(of: _Refs, per_step: int, all_fetch: bool) -> None:
    """Start to copy the own rows of the next `per_step` tokens; past the last token unless `all_fetch`, nothing."""
    packing = 4 // of.table.dtype.itemsize

    def start() -> None:
        for i in range(per_step):
            place = pl.program_id(1) * per_step + i
            word = jnp.clip(of.word[0, 0, place], 0, of.far_table.shape[0] - 1)
            rows = of.far_table.at[pl.ds((word >> (packing - 1)) * packing, packing)]
            here = of.own_rows.at[pl.ds(place * packing, packing)]
            pltpu.make_async_copy(rows, here, of.arrived).start()

    if all_fetch:
        start()
    else:
        pl.when(pl.program_id(1) < of.word.shape[2] // per_step)(start)


def _dot(of: _Refs, left: jax.Array, right: jax.Array, dims: tuple[int, int]) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if of.hidden.dtype == jnp.float32 else None
    contracted = ((dims[0],), (dims[1],)), ((), ())
    return jax.lax.dot_general(left, right, contracted, precision=precision, preferred_element_type=jnp.float32)


def _product(of: _Refs, begin: int, size: int, real: int) -> tuple[jax.Array, jax.Array]:
    """[size, D] rows of the block, zeros but for the first `real`, and the hidden states' products with them."""
    rows_VD = of.table[begin : begin + size, :].astype(of.hidden.dtype)
    if real < size:
        exists_VD = jax.lax.broadcasted_iota(jnp.int32, rows_VD.shape, 0) < real
        rows_VD = jnp.where(exists_VD, rows_VD, jnp.zeros_like(rows_VD))
    return rows_VD, _dot(of, of.hidden[...], rows_VD, (1, 1))


def _absorb(of: _Refs, rows_VD: jax.Array, bits_TV: jax.Array, real: int, *, soft_cap: float) -> None:
    """Take in rows and their products, of which the first `real` exist."""
    size = rows_VD.shape[0]
    slope_TV = None
    if soft_cap:
        tanh_TV = jnp.tanh(bits_TV * (1 / soft_cap))
        bits_TV, slope_TV = tanh_TV * (soft_cap * of.scale[0]), 1 - tanh_TV * tanh_TV
    else:
        bits_TV = bits_TV * of.scale[0]
    if of.least is not None:
        bits_TV = jnp.where(bits_TV >= _across(of.least[...], size), bits_TV, NOTHING)
    if real < size:
        bits_TV = jnp.where(jax.lax.broadcasted_iota(jnp.int32, bits_TV.shape, 1) < real, bits_TV, NOTHING)

    peak, total = of.peak[...], of.total[...]
    highest = jnp.max(_fold(jnp.maximum, bits_TV), axis=1, keepdims=True)
    new_peak = jnp.maximum(peak, highest)
    rise = peak - new_peak
    fade = jnp.exp2(rise)
    below_TV = bits_TV - _across(new_peak, size)
    weight_TV = jnp.exp2(below_TV)
    lean_TV = weight_TV * below_TV
    of.peak[...] = new_peak
    of.total[...] = fade * total + _fold(operator.add, weight_TV)
    of.lean[...] = fade * (of.lean[...] + rise * total) + _fold(operator.add, lean_TV)
    if not of.sums:
        return
    row_ref, *tilt_refs = of.sums
    fade_TD = _across(fade, row_ref.shape[1])
    for tilt_ref in tilt_refs:
        lean_TV = lean_TV if slope_TV is None else lean_TV * slope_TV
        pulled = _dot(of, lean_TV.astype(rows_VD.dtype), rows_VD, (1, 0))
        risen = tilt_ref[...] + _across(rise, row_ref.shape[1]) * row_ref[...]
        tilt_ref[...] = fade_TD * risen + pulled
    weight_TV = weight_TV if slope_TV is None else weight_TV * slope_TV
    row_ref[...] = fade_TD * row_ref[...] + _dot(of, weight_TV.astype(rows_VD.dtype), rows_VD, (1, 0))


def _finish(of: _Refs, *, soft_cap: float, own: bool, size: int) -> None:
    """Add up the lanes, normalise, and turn bits into nats.  A row of which nothing is kept gets lse -inf, else 0."""
    total, lean = _over_lanes(of.total[...]), _over_lanes(of.lean[...])
    inverse = jnp.where(total > 0, 1 / total, 0.0)
    log_total = jnp.log2(total)
    mean = lean * inverse  # of the distance from the maximum
    entropy = jnp.where(total > 0, log_total - mean, 0.0)
    token = jnp.broadcast_to(of.token[...], (LANES, of.token.shape[1])).T[: total.shape[0]]
    own_TD = _own_rows(of, token)
    logit = _over_lanes(_fold(operator.add, of.hidden[...].astype(jnp.float32) * own_TD))
    here = (token >= 0) & (token < size)
    logit = jnp.where(here, logit, 0.0)
    steep = jnp.where(here, 1.0, 0.0)
    if soft_cap:
        tanh = jnp.tanh(logit * (1 / soft_cap))
        logit, steep = soft_cap * tanh, steep - tanh * tanh
        rounded = steep.astype(of.hidden.dtype).astype(jnp.float32)
        steep = streamed.as_summed(steep, rounded, jnp.exp2(logit * of.scale[0] - of.peak[...] - log_total))
    lane = jax.lax.broadcasted_iota(jnp.int32, total.shape, 1)
    bits = jnp.where(lane == 0, of.peak[...] + log_total, jnp.where(lane == 1, entropy, logit * of.scale[0]))
    absent = jnp.zeros((of.outcome.shape[1] - total.shape[0], LANES), jnp.float32)
    of.outcome[...] = (jnp.concatenate([bits, absent]) if absent.size else bits).T[:8] * (1 / LOG2_E)
    if not of.sums:
        return
    row_ref, *tilt_refs = of.sums
    per_bit = of.scale[0] * (1 / LOG2_E)  # the inverse temperature
    inverse_TD = _across(inverse * per_bit, row_ref.shape[1])
    row_TD = row_ref[...] * inverse_TD
    for tilt_ref in tilt_refs:
        tilt_ref[...] = (tilt_ref[...] * inverse_TD - _across(mean, row_ref.shape[1]) * row_TD) * (1 / LOG2_E)
    row_ref[...] = _across(steep * per_bit, row_ref.shape[1]) * own_TD - row_TD if own else -row_TD


def _own_rows(of: _Refs, token: jax.Array) -> jax.Array:
    """[t, D], the rows that were fetched, as float32."""
    pltpu.make_async_copy(of.own_rows, of.own_rows, of.arrived).wait()
    length, width = of.hidden.shape
    if of.own_rows.dtype == jnp.float32:
        return of.own_rows[:length, :].astype(of.hidden.dtype).astype(jnp.float32)
    pair_TD = pltpu.bitcast(of.own_rows[: 2 * length, :], jnp.uint32)
    second = _across(token % 2 == 1, width)
    return pltpu.bitcast(jnp.where(second, pair_TD & jnp.uint32(0xFFFF0000), pair_TD << 16), jnp.float32)


def _vmem(block_T: int, block_V: int, hidden_TD: jax.Array, table_VD: jax.Array, moments: int) -> int:
    """Bytes of VMEM that a step takes, about: streamed blocks are there twice, and a sub-block's softmax is large."""
    width = hidden_TD.shape[1]
    hidden = 2 * block_T * width * hidden_TD.dtype.itemsize
    table = block_V * width * (2 * table_VD.dtype.itemsize + hidden_TD.dtype.itemsize)
    sums = (3 * moments + 1) * block_T * width * 4
    return hidden + table + sums + block_T * (9 * LANES + 3 * block_V) * 4


def _across(lanes: jax.Array, width: int) -> jax.Array:
    return jnp.tile(lanes, (1, width // LANES))


def _over_lanes(x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.sum(x, axis=1, keepdims=True), x.shape)


def _fold(combine: Any, x: jax.Array) -> jax.Array:
    """[t, n * 128] -> [t, 128]."""
    return functools.reduce(combine, [x[:, begin : begin + LANES] for begin in range(0, x.shape[1], LANES)])


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
