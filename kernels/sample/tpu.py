"""Hidden states to Gumbel-max tokens on a TPU: the table is read once, and no [B, V] array exists.

    z = cap(hidden . table),  token = argmax over kept of z + temperature * noise(row key, vocabulary index)
    lse = log sum over kept of exp(z / temperature),  entropy = -sum over kept of p log p

Rows stand in the lanes and the vocabulary in the sublanes: a maximum or sum over the vocabulary is then arithmetic
between registers, and what is carried is one (8, 128) tile of each running value.  A row has 128 / width places in the
lanes (width = rows padded to 32, 64 or 128), the `fold`: place f sees part f of each block of the table.

Grid: (groups of 128 // fold rows, blocks of the table), the second sequential.
    settings  [2] in SMEM               temperature, and what logits are multiplied by (1 / temperature; 1 for 0)
    start     [1] in SMEM               vocabulary index of the first row of this table (a shard's)
    hidden    [1, 128, D]               the rows of this group, once per place
    key       [1, 2, 128]               key words of the row in each lane
    floor     [1, 1, 128]               smallest kept z / temperature
    table     [block, D]                streamed
    best      [1, 2, 8, 128] carried    highest noisy logit so far, and the logit without its noise
    place     [1, 8, 128] carried       where in the table that was, less the part that lane and sublane tell
    sums      [1, 3, 8, 128] carried    maximum m of z / temperature, sum of exp(.-m), sum of exp(.-m) (.-m)
What is left, places of a row and shards of the vocabulary, `_merge` joins by the same rule.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, UInt

from thinkfirst.kernels.sample import noise

LANES, SUBLANES = 128, 8
BLOCK = 1024  # rows of the table at a time
PART = 128  # of them, per place of a row, multiplied and absorbed together
MASKED = -1e30  # a logit that is not kept: finite, so that differences are
NO_MAXIMUM = -1e20  # above MASKED, below any logit


class Draw(NamedTuple):
    """What one sweep of the table tells of each row, in nats, over the kept tokens."""

    token_B: Int[Array, "B"]
    logp_B: Float[Array, "B"]
    lse_B: Float[Array, "B"]
    entropy_B: Float[Array, "B"]


def _body(
    settings_ref: Any,
    start_ref: Any,
    hidden_ref: Any,
    key_ref: Any,
    floor_ref: Any,
    table_ref: Any,
    best_ref: Any,
    place_ref: Any,
    sums_ref: Any,
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
        best_ref[...] = jnp.full_like(best_ref, -jnp.inf)
        place_ref[...] = jnp.zeros_like(place_ref)
        sums_ref[...] = jnp.zeros_like(sums_ref)
        sums_ref[0, 0] = jnp.full((SUBLANES, LANES), NO_MAXIMUM, jnp.float32)

    temperature, rate = settings_ref[0], settings_ref[1]
    tile = (part // SUBLANES, SUBLANES, LANES)
    key = tuple(jnp.broadcast_to(key_ref[0, word : word + 1, :], tile[1:]) for word in range(noise.KEY_WORDS))
    lane_group = jax.lax.broadcasted_iota(jnp.int32, tile, 2) // (LANES // fold)
    within = (
        lane_group * rows
        + jax.lax.broadcasted_iota(jnp.int32, tile, 0) * SUBLANES
        + jax.lax.broadcasted_iota(jnp.int32, tile, 1)
    )
    best, best_logit, place = best_ref[0, 0], best_ref[0, 1], place_ref[0]
    top, total, weighted = sums_ref[0, 0], sums_ref[0, 1], sums_ref[0, 2]
    for offset in range(0, rows, part):
        index = within + (first + offset)
        gumbel = noise.gumbel(key, (index + start_ref[0]).astype(jnp.uint32))
        logit = _logits(table_ref, hidden_ref[0], lane_group, fold=fold, offset=offset, soft_cap=soft_cap)
        scaled = logit * rate
        kept = scaled >= floor_ref[0]
        if size % block:
            kept &= index < size
        scaled = jnp.where(kept, scaled, MASKED)
        noisy = jnp.where(kept, logit + temperature * gumbel, MASKED)
        for step in range(tile[0]):
            better = noisy[step] > best
            best = jnp.where(better, noisy[step], best)
            best_logit = jnp.where(better, logit[step], best_logit)
            place = jnp.where(better, first + (offset + step * SUBLANES), place)
        higher = jnp.maximum(top, scaled.max(axis=0))
        moved = top - higher
        decay = jnp.exp(moved)
        below = scaled - higher
        weight = jnp.exp(below)
        weighted = decay * (weighted + total * moved) + (weight * below).sum(axis=0)
        total = total * decay + weight.sum(axis=0)
        top = higher
    best_ref[0, 0], best_ref[0, 1], place_ref[0] = best, best_logit, place
    sums_ref[0, 0], sums_ref[0, 1], sums_ref[0, 2] = top, total, weighted


def _logits(
    table_ref: Any,
    hidden: Float[Array, "128 D"],
    lane_group: Int[Array, "_ 8 128"],
    *,
    fold: int,
    offset: int,
    soft_cap: float,
) -> Float[Array, "_ 8 128"]:
    """Capped logits of one part: each lane group keeps the products of its own rows of the table."""
    rows, part = table_ref.shape[0] // fold, lane_group.shape[0] * SUBLANES
    for group in range(fold):
        product = jax.lax.dot_general(
            table_ref[group * rows + offset : group * rows + offset + part, :],
            hidden,
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        ).reshape(lane_group.shape)
        logit = product if group == 0 else jnp.where(lane_group == group, product, logit)
    return soft_cap * jnp.tanh(logit * (1 / soft_cap)) if soft_cap else logit


def draw(
    hidden_BD: Float[Array, "B D"],
    table_VD: Float[Array, "V D"],
    key_words: UInt[Array, "B 2"],
    *,
    temperature: Float[Array, ""],
    floor_B: Float[Array, "B"] | None = None,
    soft_cap: float = 0.0,
    axis_name: str | None = None,
    block: int = BLOCK,
    part: int = PART,
    interpret: Any = False,
) -> Draw:
    """Token, its log-prob, log-sum-exp and entropy of each row, over the tokens with cap(z) / temperature >= floor_B.

    Temperature 0 draws the likeliest token; its numbers are those of temperature 1.  Inside `shard_map` with
    `axis_name`, table_VD is this device's equal share of the vocabulary, and every device gets the same result.
    """
    batch, (size, width) = hidden_BD.shape[0], table_VD.shape
    row_width = next((lanes for lanes in (32, 64) if batch <= lanes), LANES)
    fold, groups = LANES // row_width, -(-batch // row_width)
    unit = fold * SUBLANES * 2
    part = min(part, -(-size // unit) * SUBLANES * 2)
    block = min(block, -(-size // (part * fold)) * part * fold)
    if block % (part * fold) or part % (2 * SUBLANES):
        raise ValueError(f"{block=} is not {fold} places of whole parts of {part} rows")
    start = jax.lax.axis_index(axis_name) * size if axis_name else 0
    rate = _rate(temperature)
    floor_B = jnp.full(batch, -jnp.inf) if floor_B is None else floor_B

    def in_lanes(row_B: Array) -> Array:
        """[groups, 128, ...]: each group of rows once per place."""
        padding = ((0, groups * row_width - batch), *((0, 0) for _ in row_B.shape[1:]))
        grouped = jnp.pad(row_B, padding).reshape(groups, row_width, *row_B.shape[1:])
        return jnp.concatenate([grouped] * fold, axis=1)

    best, place, sums = pl.pallas_call(
        functools.partial(_body, fold=fold, part=part, size=size, soft_cap=soft_cap),
        grid=(groups, -(-size // block)),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((1, LANES, width), lambda group, _: (group, 0, 0)),
            pl.BlockSpec((1, noise.KEY_WORDS, LANES), lambda group, _: (group, 0, 0)),
            pl.BlockSpec((1, 1, LANES), lambda group, _: (group, 0, 0)),
            pl.BlockSpec((block, width), lambda _, step: (step, 0)),
        ],
        out_specs=[
            pl.BlockSpec((1, 2, SUBLANES, LANES), lambda group, _: (group, 0, 0, 0)),
            pl.BlockSpec((1, SUBLANES, LANES), lambda group, _: (group, 0, 0)),
            pl.BlockSpec((1, 3, SUBLANES, LANES), lambda group, _: (group, 0, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((groups, 2, SUBLANES, LANES), jnp.float32),
            jax.ShapeDtypeStruct((groups, SUBLANES, LANES), jnp.int32),
            jax.ShapeDtypeStruct((groups, 3, SUBLANES, LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="sample_head",
        interpret=interpret,
    )(
        jnp.stack([temperature, rate]),
        jnp.full(1, start, jnp.int32),
        in_lanes(hidden_BD),
        in_lanes(key_words).swapaxes(1, 2),
        in_lanes(floor_B)[:, None, :],
        table_VD.astype(hidden_BD.dtype),
    )
    lane_group = jnp.arange(LANES, dtype=jnp.int32) // row_width
    token = start + place + lane_group * (block // fold) + jnp.arange(SUBLANES, dtype=jnp.int32)[:, None]

    def candidates(part: Array) -> Array:
        """[places of a row, B] from [groups, 8, 128]."""
        apart = part.reshape(groups, SUBLANES * fold, row_width)
        return apart.swapaxes(0, 1).reshape(SUBLANES * fold, groups * row_width)[:, :batch]

    parts = [candidates(x) for x in (best[:, 0], token, best[:, 1], sums[:, 0], sums[:, 1], sums[:, 2])]
    merged = _merge(*parts)
    if axis_name:
        merged = _merge(*(jax.lax.all_gather(x, axis_name) for x in merged))
    _, token_B, logit_B, top_B, total_B, weighted_B = merged
    lse_B = top_B + jnp.log(total_B)
    return Draw(token_B, logit_B * rate - lse_B, lse_B, jnp.log(total_B) - weighted_B / total_B)


def _rate(temperature: Float[Array, ""]) -> Float[Array, ""]:
    """What logits are multiplied by: greedy sampling reports the distribution of temperature 1."""
    return 1 / jnp.where(temperature == 0, 1.0, temperature)


def _merge(
    noisy_CB: Float[Array, "C B"],
    token_CB: Int[Array, "C B"],
    logit_CB: Float[Array, "C B"],
    top_CB: Float[Array, "C B"],
    total_CB: Float[Array, "C B"],
    weighted_CB: Float[Array, "C B"],
) -> tuple[Array, ...]:
    """The same six numbers of each row over C disjoint parts of the vocabulary; of equals the lowest token wins."""
    noisy_B = noisy_CB.max(axis=0)
    token_B = jnp.where(noisy_CB == noisy_B, token_CB, jnp.iinfo(jnp.int32).max).min(axis=0)
    logit_B = jnp.where((noisy_CB == noisy_B) & (token_CB == token_B), logit_CB, -jnp.inf).max(axis=0)
    top_B = top_CB.max(axis=0)
    moved_CB = top_CB - top_B
    decay_CB = jnp.exp(moved_CB)
    weighted_B = (decay_CB * (weighted_CB + total_CB * moved_CB)).sum(axis=0)
    return noisy_B, token_B, logit_B, top_B, (total_CB * decay_CB).sum(axis=0), weighted_B
