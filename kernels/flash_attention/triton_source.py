"""Triton sources of causal attention; imported by gpu.py when a kernel is launched, since importing this needs Triton.

Arrays are addressed where the projections wrote them: [B, T, N, H], [B, T, K, H], statistics [B, T, N] and segment
ids [B, T].  Tiles carry the letters of the reference: T queries, S keys, H the width of a head.  Scores are kept in
bits (times log2 e), so that every exponential is one exp2.  Upper-case parameters are compile-time constants.
"""

import triton
import triton.language as tl

MASKED = tl.constexpr(-1e30)  # finite: a tile without any visible key must not make NaN
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def capped(product, SCALE: tl.constexpr, SOFT_CAP: tl.constexpr):
    """Scores in bits from query-key products."""
    if SOFT_CAP > 0:
        tanh = 1 - 2 / (tl.exp2(product * (2 * LOG2_E * SCALE / SOFT_CAP)) + 1)
        score = tanh * (SOFT_CAP * LOG2_E)
    else:
        score = product * (SCALE * LOG2_E)
    return score


@triton.jit
def slope(gradient, score, SCALE: tl.constexpr, SOFT_CAP: tl.constexpr):
    """Gradient of the products from the gradient of the (natural) scores."""
    if SOFT_CAP > 0:
        tanh = score * (1 / (SOFT_CAP * LOG2_E))
        gradient = gradient * (1 - tanh * tanh)
    return gradient * SCALE


@triton.jit
def visible(query, key, query_segment, key_segment, WINDOW: tl.constexpr):
    """Which keys (by position) a query may look at; a key behind the end of the text never."""
    seen = (key <= query) & (query_segment == key_segment)
    if WINDOW > 0:
        seen = seen & (query - key < WINDOW)
    return seen


@triton.jit
def first_key(first_ptr, block, batch, QUERIES: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr):
    """Where the keys of a query tile begin: behind older segments, and within the window of its first query."""
    low = tl.load(first_ptr + batch * tl.num_programs(0) + block)
    if WINDOW > 0:
        low = tl.maximum(low, tl.maximum(block * QUERIES - WINDOW + 1, 0) // KEYS * KEYS)
    return low


@triton.jit
def forward(
    query_ptr,
    key_ptr,
    value_ptr,
    segment_ptr,
    first_ptr,
    context_ptr,
    lse_ptr,
    LENGTH: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Context and log-sum-exp of one tile of queries of one head; the tiles with most keys start first."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head, batch = tl.program_id(1), tl.program_id(2)
    start_B = batch.to(tl.int64) * LENGTH
    query_start = (start_B * HEADS + head) * WIDTH
    key_start = (start_B * GROUPS + head // (HEADS // GROUPS)) * WIDTH
    h = tl.arange(0, WIDTH)
    row = block * QUERIES + tl.arange(0, QUERIES)
    inside = row < LENGTH
    tile_TH = row[:, None] * (HEADS * WIDTH) + h[None, :]
    query_TH = tl.load(query_ptr + query_start + tile_TH, mask=inside[:, None], other=0.0)
    row_segment = tl.load(segment_ptr + start_B + row, mask=inside, other=0)

    context_TH = tl.zeros([QUERIES, WIDTH], tl.float32)
    peak_T = tl.full([QUERIES], MASKED, tl.float32)
    total_T = tl.zeros([QUERIES], tl.float32)
    low = first_key(first_ptr, block, batch, QUERIES, KEYS, WINDOW)
    high = tl.minimum((block + 1) * QUERIES, LENGTH)
    for start in range(low, high, KEYS):
        col = start + tl.arange(0, KEYS)
        held = col < LENGTH
        tile_SH = col[:, None] * (GROUPS * WIDTH) + h[None, :]
        key_SH = tl.load(key_ptr + key_start + tile_SH, mask=held[:, None], other=0.0)
        col_segment = tl.load(segment_ptr + start_B + col, mask=held, other=0)
        product_TS = tl.dot(query_TH, tl.trans(key_SH), input_precision=PRECISION)
        seen_TS = visible(row[:, None], col[None, :], row_segment[:, None], col_segment[None, :], WINDOW)
        score_TS = tl.where(seen_TS, capped(product_TS, SCALE, SOFT_CAP), MASKED)
        higher_T = tl.maximum(peak_T, tl.max(score_TS, 1))
        weight_TS = tl.exp2(score_TS - higher_T[:, None])
        shrink_T = tl.exp2(peak_T - higher_T)
        total_T = total_T * shrink_T + tl.sum(weight_TS, 1)
        value_SH = tl.load(value_ptr + key_start + tile_SH, mask=held[:, None], other=0.0)
        context_TH = tl.dot(
            weight_TS.to(value_SH.dtype), value_SH, context_TH * shrink_T[:, None], input_precision=PRECISION
        )
        peak_T = higher_T

    context_TH = context_TH / total_T[:, None]
    place_TH = context_ptr + query_start + tile_TH
    tl.store(place_TH, context_TH.to(context_ptr.dtype.element_ty), mask=inside[:, None])
    lse_T = (peak_T + tl.log2(total_T)) * LN_2
    tl.store(lse_ptr + start_B * HEADS + row * HEADS + head, lse_T, mask=inside)


@triton.jit
def query_gradient(
    query_ptr,
    key_ptr,
    value_ptr,
    segment_ptr,
    first_ptr,
    upstream_ptr,
    lse_ptr,
    inner_ptr,
    gradient_ptr,
    LENGTH: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of one tile of queries of one head; the keys stream by as in `forward`."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head, batch = tl.program_id(1), tl.program_id(2)
    start_B = batch.to(tl.int64) * LENGTH
    query_start = (start_B * HEADS + head) * WIDTH
    key_start = (start_B * GROUPS + head // (HEADS // GROUPS)) * WIDTH
    h = tl.arange(0, WIDTH)
    row = block * QUERIES + tl.arange(0, QUERIES)
    inside = row < LENGTH
    tile_TH = row[:, None] * (HEADS * WIDTH) + h[None, :]
    statistic_T = start_B * HEADS + row * HEADS + head
    query_TH = tl.load(query_ptr + query_start + tile_TH, mask=inside[:, None], other=0.0)
    upstream_TH = tl.load(upstream_ptr + query_start + tile_TH, mask=inside[:, None], other=0.0)
    row_segment = tl.load(segment_ptr + start_B + row, mask=inside, other=0)
    lse_T = tl.load(lse_ptr + statistic_T, mask=inside, other=float("inf")) * LOG2_E
    inner_T = tl.load(inner_ptr + statistic_T, mask=inside, other=0.0)

    gradient_TH = tl.zeros([QUERIES, WIDTH], tl.float32)
    low = first_key(first_ptr, block, batch, QUERIES, KEYS, WINDOW)
    high = tl.minimum((block + 1) * QUERIES, LENGTH)
    for start in range(low, high, KEYS):
        col = start + tl.arange(0, KEYS)
        held = col < LENGTH
        tile_SH = col[:, None] * (GROUPS * WIDTH) + h[None, :]
        key_SH = tl.load(key_ptr + key_start + tile_SH, mask=held[:, None], other=0.0)
        value_SH = tl.load(value_ptr + key_start + tile_SH, mask=held[:, None], other=0.0)
        col_segment = tl.load(segment_ptr + start_B + col, mask=held, other=0)
        score_TS = capped(tl.dot(query_TH, tl.trans(key_SH), input_precision=PRECISION), SCALE, SOFT_CAP)
        seen_TS = visible(row[:, None], col[None, :], row_segment[:, None], col_segment[None, :], WINDOW)
        weight_TS = tl.exp2(tl.where(seen_TS, score_TS, MASKED) - lse_T[:, None])
        change_TS = tl.dot(upstream_TH, tl.trans(value_SH), input_precision=PRECISION) - inner_T[:, None]
        product_TS = slope(weight_TS * change_TS, score_TS, SCALE, SOFT_CAP)
        gradient_TH = tl.dot(product_TS.to(key_SH.dtype), key_SH, gradient_TH, input_precision=PRECISION)

    place_TH = gradient_ptr + query_start + tile_TH
    tl.store(place_TH, gradient_TH.to(gradient_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def key_value_gradient(
    query_ptr,
    key_ptr,
    value_ptr,
    segment_ptr,
    last_ptr,
    upstream_ptr,
    lse_ptr,
    inner_ptr,
    key_gradient_ptr,
    value_gradient_ptr,
    LENGTH: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of one tile of keys and values; the queries of every head that reads them stream by."""
    block, group, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start_B = batch.to(tl.int64) * LENGTH
    query_start = start_B * HEADS * WIDTH
    key_start = (start_B * GROUPS + group) * WIDTH
    h = tl.arange(0, WIDTH)
    col = block * KEYS + tl.arange(0, KEYS)
    held = col < LENGTH
    tile_SH = col[:, None] * (GROUPS * WIDTH) + h[None, :]
    key_SH = tl.load(key_ptr + key_start + tile_SH, mask=held[:, None], other=0.0)
    value_SH = tl.load(value_ptr + key_start + tile_SH, mask=held[:, None], other=0.0)
    col_segment = tl.load(segment_ptr + start_B + col, mask=held, other=0)

    key_gradient_SH = tl.zeros([KEYS, WIDTH], tl.float32)
    value_gradient_SH = tl.zeros([KEYS, WIDTH], tl.float32)
    low = block * KEYS // QUERIES
    high = tl.load(last_ptr + batch * tl.num_programs(0) + block)
    if WINDOW > 0:
        high = tl.minimum(high, (block + 1) * KEYS - 1 + WINDOW)
    tiles = tl.cdiv(high, QUERIES) - low
    for step in range(tiles * (HEADS // GROUPS)):
        head = group * (HEADS // GROUPS) + step // tiles
        row = (low + step % tiles) * QUERIES + tl.arange(0, QUERIES)
        inside = row < LENGTH
        tile_TH = (row[:, None] * HEADS + head) * WIDTH + h[None, :]
        statistic_T = start_B * HEADS + row * HEADS + head
        query_TH = tl.load(query_ptr + query_start + tile_TH, mask=inside[:, None], other=0.0)
        upstream_TH = tl.load(upstream_ptr + query_start + tile_TH, mask=inside[:, None], other=0.0)
        row_segment = tl.load(segment_ptr + start_B + row, mask=inside, other=0)
        lse_T = tl.load(lse_ptr + statistic_T, mask=inside, other=float("inf")) * LOG2_E
        inner_T = tl.load(inner_ptr + statistic_T, mask=inside, other=0.0)
        score_ST = capped(tl.dot(key_SH, tl.trans(query_TH), input_precision=PRECISION), SCALE, SOFT_CAP)
        seen_ST = visible(row[None, :], col[:, None], row_segment[None, :], col_segment[:, None], WINDOW)
        weight_ST = tl.exp2(tl.where(seen_ST, score_ST, MASKED) - lse_T[None, :])
        value_gradient_SH = tl.dot(
            weight_ST.to(upstream_TH.dtype), upstream_TH, value_gradient_SH, input_precision=PRECISION
        )
        change_ST = tl.dot(value_SH, tl.trans(upstream_TH), input_precision=PRECISION) - inner_T[None, :]
        product_ST = slope(weight_ST * change_ST, score_ST, SCALE, SOFT_CAP)
        key_gradient_SH = tl.dot(product_ST.to(query_TH.dtype), query_TH, key_gradient_SH, input_precision=PRECISION)

    dtype = key_gradient_ptr.dtype.element_ty
    tl.store(key_gradient_ptr + key_start + tile_SH, key_gradient_SH.to(dtype), mask=held[:, None])
    tl.store(value_gradient_ptr + key_start + tile_SH, value_gradient_SH.to(dtype), mask=held[:, None])
