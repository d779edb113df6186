"""Triton source of the attention of decoding; imported by gpu.py when it is launched, since this needs Triton.

Tiles: J query heads of one group, of one or a few rows, S slots, H the width of a head.  Scores are kept in bits (times
log2 e), so that every exponential is one exp2.  Upper-case parameters are compile-time constants.
"""

import triton
import triton.language as tl

MASKED = tl.constexpr(-1e30)  # finite: a tile without any visible slot must not make NaN
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def share_of_slots(
    query_ptr,
    key_ptr,
    value_ptr,
    layer_ptr,
    slab_ptr,
    newest_ptr,
    ahead_ptr,
    order_ptr,
    context_ptr,
    peak_ptr,
    total_ptr,
    BATCH: tl.constexpr,
    SLABS: tl.constexpr,
    CACHE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    TOGETHER: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Softmax sums of one group of heads of a few rows over their share of the slots that can be visible."""
    share, shares = tl.program_id(0), tl.num_programs(0)
    group = tl.program_id(1)
    j = tl.arange(0, ROWS)
    h = tl.arange(0, WIDTH)
    turn = tl.program_id(2) * TOGETHER + j // (HEADS // GROUPS)
    inside = (j < TOGETHER * (HEADS // GROUPS)) & (turn < BATCH)
    row = tl.load(order_ptr + turn, mask=inside, other=0)
    head = group * (HEADS // GROUPS) + j % (HEADS // GROUPS)
    query_JH = tl.load(
        query_ptr + (row[:, None] * HEADS + head[:, None]) * WIDTH + h[None, :], mask=inside[:, None], other=0.0
    )
    slab_J = tl.load(slab_ptr + row, mask=inside, other=-1)
    newest_J = tl.load(newest_ptr + row, mask=inside, other=-1)
    ahead_J = tl.load(ahead_ptr + row, mask=inside, other=0)
    layer = tl.load(layer_ptr)

    context_JH = tl.zeros([ROWS, WIDTH], tl.float32)
    peak_J = tl.full([ROWS], MASKED, tl.float32)
    total_J = tl.zeros([ROWS], tl.float32)
    # Rows of one program mostly read one slab; a row looks at nothing in the slabs of others.
    for slab in range(tl.min(tl.where(inside, slab_J, SLABS), 0), tl.max(slab_J, 0) + 1):
        position_J = tl.where(slab_J == slab, newest_J, -1)
        newest = tl.max(position_J, 0)
        cache_start = ((layer * SLABS + slab).to(tl.int64) * CACHE * GROUPS + group) * WIDTH
        low = newest * 0
        if WINDOW > 0:
            oldest = tl.min(tl.where(position_J >= 0, position_J + ahead_J, CACHE), 0) - WINDOW + 1
            low = tl.where(newest < CACHE, tl.maximum(oldest, 0), 0) // SLOTS
        tiles = tl.maximum(tl.cdiv(tl.minimum(newest + 1, CACHE), SLOTS) - low, 0)
        each = tl.cdiv(tiles, shares)
        for tile in range(low + share * each, low + tl.minimum((share + 1) * each, tiles)):
            slot = tile * SLOTS + tl.arange(0, SLOTS)
            held = slot < CACHE
            tile_SH = slot[:, None] * (GROUPS * WIDTH) + h[None, :]
            key_SH = tl.load(key_ptr + cache_start + tile_SH, mask=held[:, None], other=0.0)
            score_JS = tl.dot(query_JH, tl.trans(key_SH), input_precision=PRECISION) * SCALE
            if SOFT_CAP > 0:
                score_JS = SOFT_CAP - 2 * SOFT_CAP / (tl.exp2(score_JS * (2 * LOG2_E / SOFT_CAP)) + 1)
            distance_JS = (position_J[:, None] - slot[None, :] + CACHE) % CACHE
            seen_JS = held[None, :] & (distance_JS <= position_J[:, None])
            if WINDOW > 0:
                seen_JS = seen_JS & (distance_JS + ahead_J[:, None] < WINDOW)
            score_JS = tl.where(seen_JS, score_JS * LOG2_E, MASKED)
            higher_J = tl.maximum(peak_J, tl.max(score_JS, 1))
            weight_JS = tl.where(seen_JS, tl.exp2(score_JS - higher_J[:, None]), 0.0)
            shrink_J = tl.exp2(peak_J - higher_J)
            total_J = total_J * shrink_J + tl.sum(weight_JS, 1)
            value_SH = tl.load(value_ptr + cache_start + tile_SH, mask=held[:, None], other=0.0)
            context_JH = tl.dot(
                weight_JS.to(value_SH.dtype), value_SH, context_JH * shrink_J[:, None], input_precision=PRECISION
            )
            peak_J = higher_J

    place_J = (row * shares + share) * HEADS + head
    tl.store(context_ptr + place_J[:, None] * WIDTH + h[None, :], context_JH, mask=inside[:, None])
    tl.store(peak_ptr + place_J, peak_J, mask=inside)
    tl.store(total_ptr + place_J, total_J, mask=inside)
