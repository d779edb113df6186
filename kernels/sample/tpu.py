"""Hidden states to Gumbel-max tokens on a TPU: the table is read once, and no [B, V] array exists.

    z = cap(hidden . table),  token = argmax over kept of z + temperature * noise(row key, vocabulary index)
    lse = log sum over kept of exp(z / temperature),  entropy = -sum over kept of p log p

Rows stand in the lanes and the vocabulary in the sublanes: a maximum or sum over the vocabulary is then arithmetic
between registers, and what is carried is one (8, 128) tile per running value.  A row has `fold` places in the lanes,
128 / (rows padded to 32, 64 or 128): place f sees part f of each block of the table.  The hidden states are the
stationary operand of the matrix unit and the table streams past them.

Grid: (groups of 128 / fold rows, blocks of the table), the second sequential.
    settings  [2] in SMEM       temperature, and what logits are multiplied by: 1 / temperature, or 1 for 0
    start     [1] in SMEM       vocabulary index of the first row of this table (a shard's)
    hidden    [1, D, 128]       the rows of this group, once per place
    key       [1, 2, 128]       key words of the row in each lane
    floor     [1, 1, 128]       smallest kept z / temperature
    table     [block, D]        streamed; in `fold` parts of block / fold rows, each absorbed a few rows at a time
    token     [1, 1, 128]       written at the last block, as are
    numbers   [1, 5, 128]       the floats of `Running`, the same in every place of a row
    floats, places (scratch)    carried: `Running`, a candidate per sublane and lane
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Key, UInt

from thinkfirst.kernels import blocks
from thinkfirst.kernels.sample import floor, noise, reference
from thinkfirst.kernels.token_logprob import reference as logprob_reference

LANES, SUBLANES = 128, 8
ROW_WIDTHS = (32, 64, LANES)  # more places than four would leave too few rows of the table for each
BLOCK_BYTES = 2048 * 1152 * 2  # of the table at a time; twice that is in VMEM
PART = 32  # rows of the table per place that are multiplied and absorbed together
MASKED = -1e30  # a logit that is not kept: finite, so that differences are
NO_MAXIMUM = -1e20  # above MASKED, below any logit


class Running(NamedTuple):
    """What a part of the vocabulary tells of each row; `join` gives that of two parts."""

    token: Array  # the index at which `noisy` was found
    noisy: Array  # highest logit with noise
    logit: Array  # the same logit without
    top: Array  # maximum m of z / temperature
    total: Array  # sum of exp(z / temperature - m)
    weighted: Array  # sum of exp(z / temperature - m) (z / temperature - m)


class Draw(NamedTuple):
    """Token of each row, and its log-prob, the log-sum-exp and the entropy in nats over the kept tokens.

    A row whose logits hold a NaN, or are all -inf, or reach +inf, gets token 0 and the log-prob NaN.
    """

    token_B: Int[Array, "B"]
    logp_B: Float[Array, "B"]
    lse_B: Float[Array, "B"]
    entropy_B: Float[Array, "B"]


def join(left: Running, right: Running) -> Running:
    """Two disjoint parts of the vocabulary as one; of equal noisy logits the lower token wins, whatever the order."""
    wins = (left.noisy > right.noisy) | ((left.noisy == right.noisy) & (left.token < right.token))
    top = jnp.maximum(left.top, right.top)
    total, weighted = jnp.zeros_like(top), jnp.zeros_like(top)
    for part in (left, right):
        moved = part.top - top
        decay = jnp.exp(moved)
        total += decay * part.total
        weighted += decay * (part.weighted + part.total * moved)
    token, noisy, logit = (jnp.where(wins, a, b) for a, b in zip(left[:3], right[:3], strict=True))
    return Running(token, noisy, logit, top, total, weighted)


def _body(
    settings_ref: Any,
    start_ref: Any,
    hidden_ref: Any,
    key_ref: Any,
    floor_ref: Any,
    table_ref: Any,
    token_ref: Any,
    numbers_ref: Any,
    places_ref: Any,
    floats_ref: Any,
    *,
    fold: int,
    part: int,
    size: int,
    soft_cap: float,
) -> None:
    block, rows = table_ref.shape[0], table_ref.shape[0] // fold
    first = pl.program_id(1) * block

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        places_ref[...] = jnp.zeros_like(places_ref)
        for number, value in enumerate((-jnp.inf, 0.0, NO_MAXIMUM, 0.0, 0.0)):
            floats_ref[number] = jnp.full((SUBLANES, LANES), value, jnp.float32)

    shape = (part // SUBLANES, SUBLANES, LANES)
    lane_group = jax.lax.broadcasted_iota(jnp.int32, shape, 2) >> (LANES // fold).bit_length() - 1
    own_row = lane_group * rows + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    index = own_row + jax.lax.broadcasted_iota(jnp.int32, shape, 0) * SUBLANES + first
    key = (jnp.broadcast_to(key_ref[0, :1], shape[1:]), jnp.broadcast_to(key_ref[0, 1:], shape[1:]))
    temperature, rate, floor = settings_ref[0], settings_ref[1], floor_ref[0]
    running = Running(places_ref[...], *(floats_ref[number] for number in range(5)))
    for offset in range(0, rows, part):
        gumbel = noise.gumbel(key, (index + (start_ref[0] + offset)).astype(jnp.uint32))
        logit = _logits(table_ref, hidden_ref[0], lane_group, rows=rows, offset=offset, soft_cap=soft_cap)
        dropped = logit * rate < floor  # false for NaN, which must show in the sums
        if size % block:
            dropped |= index + offset >= size
        scaled = jnp.where(dropped, MASKED, logit * rate)
        noisy = jnp.where(dropped, MASKED, logit + temperature * gumbel)
        running = _absorb(running, logit, noisy, scaled, first + offset)
    places_ref[...] = running.token
    for number in range(5):
        floats_ref[number] = running[1 + number]

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _() -> None:
        result = running._replace(token=running.token + own_row[0] + start_ref[0])
        shifts = [(0, SUBLANES >> level) for level in (1, 2, 3)] + [
            (1, shift) for shift in (64, 32) if shift >= LANES // fold
        ]
        for axis, shift in shifts:
            result = join(result, Running(*(pltpu.roll(x, shift, axis) for x in result)))
        token_ref[0] = result.token[:1]
        numbers_ref[0] = jnp.concatenate([x[:1] for x in result[1:]])


def _logits(
    table_ref: Any,
    hidden: Float[Array, "D 128"],
    lane_group: Int[Array, "_ 8 128"],
    *,
    rows: int,
    offset: int,
    soft_cap: float,
) -> Float[Array, "_ 8 128"]:
    """Capped logits of one part: each lane group keeps the products of its own rows of the table."""
    part = lane_group.shape[0] * SUBLANES
    logit = jnp.zeros(lane_group.shape, jnp.float32)
    for group in range(table_ref.shape[0] // rows):
        table = table_ref[group * rows + offset : group * rows + offset + part, :]
        product = jnp.dot(table, hidden, preferred_element_type=jnp.float32).reshape(lane_group.shape)
        logit = jnp.where(lane_group == group, product, logit) if group else product
    return soft_cap * jnp.tanh(logit * (1 / soft_cap)) if soft_cap else logit


def _absorb(
    running: Running,
    logit: Float[Array, "_ 8 128"],
    noisy: Float[Array, "_ 8 128"],
    scaled: Float[Array, "_ 8 128"],
    first: Int[Array, ""],
) -> Running:
    """`running` after the logits of the table's rows from `first` on; tokens without what sublane and lane tell."""
    token, best, best_logit = running[:3]
    for step in range(logit.shape[0]):
        better = noisy[step] > best
        token = jnp.where(better, first + step * SUBLANES, token)
        best = jnp.where(better, noisy[step], best)
        best_logit = jnp.where(better, logit[step], best_logit)
    top = jnp.maximum(running.top, scaled.max(axis=0))
    moved = running.top - top
    decay = jnp.exp(moved)
    below = scaled - top
    weight = jnp.exp(below)
    total = decay * running.total + weight.sum(axis=0)
    weighted = decay * (running.weighted + running.total * moved) + (weight * below).sum(axis=0)
    return Running(token, best, best_logit, top, total, weighted)


def draw(
    hidden_BD: Float[Array, "B D"],
    table_VD: Float[Array, "V D"],
    key_words: UInt[Array, "B 2"],
    *,
    temperature: Float[Array, ""],
    floor_B: Float[Array, "B"] | None = None,
    soft_cap: float = 0.0,
    axis_name: str | None = None,
    block: int | None = None,
    part: int | None = None,
    interpret: Any = False,
) -> Draw:
    """One token of each row, among those with cap(z) / temperature >= floor_B.

    Temperature 0 draws the likeliest token; its numbers are those of temperature 1.  Inside `shard_map` with
    `axis_name`, table_VD is this device's equal share of the vocabulary, and every device gets the same result.
    """
    batch, (size, width) = hidden_BD.shape[0], table_VD.shape
    row_width = next((lanes for lanes in ROW_WIDTHS if batch <= lanes), LANES)
    fold, groups = LANES // row_width, -(-batch // row_width)
    known = blocks.sizes("sample", f"{row_width} rows of {width} {hidden_BD.dtype}", {"part": PART, "block": 0})
    part = min(part or known["part"], _round_up(-(-size // fold), 2 * SUBLANES))
    block = block or known["block"]
    block = block or max(1, BLOCK_BYTES // (width * hidden_BD.dtype.itemsize * part * fold)) * part * fold
    block = min(block, _round_up(size, part * fold))
    if block % (part * fold):
        raise ValueError(f"a block of {block} rows is not {fold} times whole parts of {part}")
    start = jax.lax.axis_index(axis_name) * size if axis_name else 0
    rate = 1 / jnp.where(temperature == 0, 1.0, temperature)

    def in_lanes(row_B: Array) -> Array:
        """[groups, 128, ...]: each group of rows once per place."""
        padding = ((0, groups * row_width - batch), *((0, 0) for _ in row_B.shape[1:]))
        grouped = jnp.pad(row_B, padding).reshape(groups, row_width, *row_B.shape[1:])
        return jnp.concatenate([grouped] * fold, axis=1)

    token, numbers = pl.pallas_call(
        functools.partial(_body, fold=fold, part=part, size=size, soft_cap=soft_cap),
        grid=(groups, -(-size // block)),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((1, width, LANES), lambda group, _: (group, 0, 0)),
            pl.BlockSpec((1, noise.KEY_WORDS, LANES), lambda group, _: (group, 0, 0)),
            pl.BlockSpec((1, 1, LANES), lambda group, _: (group, 0, 0)),
            pl.BlockSpec((block, width), lambda _, step: (step, 0)),
        ],
        out_specs=[
            pl.BlockSpec((1, 1, LANES), lambda group, _: (group, 0, 0)),
            pl.BlockSpec((1, 5, LANES), lambda group, _: (group, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((groups, 1, LANES), jnp.int32),
            jax.ShapeDtypeStruct((groups, 5, LANES), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((SUBLANES, LANES), jnp.int32),
            pltpu.VMEM((5, SUBLANES, LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="sample_head",
        interpret=interpret,
    )(
        jnp.stack([temperature, rate]),
        jnp.full(1, start, jnp.int32),
        in_lanes(hidden_BD).swapaxes(1, 2),
        in_lanes(key_words).swapaxes(1, 2),
        jnp.full((groups, 1, LANES), -jnp.inf) if floor_B is None else in_lanes(floor_B)[:, None, :],
        table_VD.astype(hidden_BD.dtype),
    )
    rows = jax.tree.map(
        lambda x: x[:, :row_width].reshape(-1)[:batch], Running(token[:, 0], *(numbers[:, i] for i in range(5)))
    )
    if axis_name:
        shards = jax.lax.all_gather(rows, axis_name)
        rows = functools.reduce(join, [jax.tree.map(lambda x, i=i: x[i], shards) for i in range(shards.top.shape[0])])
    lse_B = rows.top + jnp.log(rows.total)
    fault_B = ~jnp.isfinite(lse_B)
    return Draw(
        jnp.where(fault_B, 0, rows.token),
        jnp.where(fault_B, jnp.nan, rows.logit * rate - lse_B),
        lse_B,
        jnp.log(rows.total) - rows.weighted / rows.total,
    )


def sample(
    hidden_BD: Float[Array, "B D"],
    table_VD: Float[Array, "V D"],
    key_B: Key[Array, "B"],
    *,
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    min_p: Float[Array, ""],
    truncated: bool = True,
    soft_cap: float = 0.0,
    axis_name: str | None = None,
    interpret: Any = False,
) -> reference.Drawn:
    """(token, log-prob under the sampled distribution, floor) of each row; see `draw`.

    `truncated=False` says that top-k, top-p and min-p are off, and nothing is compiled for them.  Else the program has
    room for a [B, V] of logits, and where one of the three is asked for it reads the table twice: the floor takes
    dozens of looks at the logits, each of which costs a small part of what streaming the table anew would.
    """
    nothing_B = jnp.full(hidden_BD.shape[0], -jnp.inf)

    def find_floor() -> tuple[Array, Array]:
        """The floor, and the log-sum-exp that makes of it a bound for the scaled logits."""
        logit_BV = logprob_reference.logits(hidden_BD, table_VD, soft_cap) / temperature
        lse_B = jax.nn.logsumexp(logit_BV, axis=1)
        if axis_name:
            lse_B = jax.nn.logsumexp(jax.lax.all_gather(lse_B, axis_name), axis=0)
        floor_B = floor.truncation_floor(logit_BV - lse_B[:, None], top_k, top_p, min_p, axis_name)
        return jnp.where(jnp.isfinite(lse_B), floor_B, -jnp.inf), lse_B

    floor_B, least_B = nothing_B, None
    if truncated:
        asked = reference.asked(greedy=temperature == 0, top_k=top_k, top_p=top_p, min_p=min_p)
        floor_B, lse_B = jax.lax.cond(asked, find_floor, lambda: (nothing_B, jnp.zeros_like(nothing_B)))
        least_B = floor_B + lse_B
    drawn = draw(
        hidden_BD,
        table_VD,
        noise.key_words(key_B),
        temperature=temperature,
        floor_B=least_B,
        soft_cap=soft_cap,
        axis_name=axis_name,
        interpret=interpret,
    )
    return drawn.token_B, drawn.logp_B, floor_B


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
