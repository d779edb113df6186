"""Triton sources of the token log-probability; imported by gpu.py when a kernel is launched, since this needs Triton.

Tiles: T tokens, V words, D a slice of the width.  Logits are kept in bits (times log2 e / temperature), so that every
exponential is one exp2.  Upper-case parameters are compile-time constants.
"""

import triton
import triton.language as tl

MASKED = tl.constexpr(-1e30)  # finite: a tile in which no word is kept must not make NaN
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def capped_logits(
    hidden_ptr,
    table_ptr,
    row,
    start,
    LENGTH: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Natural logits, before the temperature, of a tile of tokens for the words from `start` on."""
    word = tl.arange(0, WORDS)
    depth = tl.arange(0, DEPTH)
    table_ptr += start.to(tl.int64) * WIDTH
    logit_TV = tl.zeros([TOKENS, WORDS], tl.float32)
    for behind in range(0, WIDTH, DEPTH):
        d = behind + depth
        hidden_TD = tl.load(
            hidden_ptr + row[:, None] * WIDTH + d[None, :],
            mask=(row[:, None] < LENGTH) & (d[None, :] < WIDTH),
            other=0.0,
        )
        table_VD = tl.load(
            table_ptr + word[:, None] * WIDTH + d[None, :],
            mask=(start + word[:, None] < VOCAB) & (d[None, :] < WIDTH),
            other=0.0,
        )
        logit_TV = tl.dot(hidden_TD, tl.trans(table_VD), logit_TV, input_precision=PRECISION)
    if SOFT_CAP > 0:
        logit_TV = SOFT_CAP - 2 * SOFT_CAP / (tl.exp2(logit_TV * (2 * LOG2_E / SOFT_CAP)) + 1)
    return logit_TV


@triton.jit
def sweep(
    hidden_ptr,
    table_ptr,
    token_ptr,
    threshold_ptr,
    temperature_ptr,
    peak_ptr,
    total_ptr,
    moment_ptr,
    token_logit_ptr,
    LENGTH: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    TRUNCATED: tl.constexpr,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One share of the vocabulary for one tile of tokens: the sums of a softmax relative to its largest logit."""
    share, shares = tl.program_id(1), tl.num_programs(1)
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = row < LENGTH
    token_T = tl.load(token_ptr + row, mask=inside, other=0)
    bits = LOG2_E / tl.load(temperature_ptr)
    if TRUNCATED:
        threshold_T = tl.load(threshold_ptr + row, mask=inside, other=float("-inf")) * LOG2_E

    peak_T = tl.full([TOKENS], MASKED, tl.float32)
    total_T = tl.zeros([TOKENS], tl.float32)
    moment_T = tl.zeros([TOKENS], tl.float32)  # sum of p (logit - peak)
    token_logit_T = tl.zeros([TOKENS], tl.float32)
    tiles = tl.cdiv(tl.cdiv(VOCAB, WORDS), shares)
    for tile in range(share * tiles, tl.minimum((share + 1) * tiles, tl.cdiv(VOCAB, WORDS))):
        start = tile * WORDS
        word = start + tl.arange(0, WORDS)
        logit_TV = bits * capped_logits(
            hidden_ptr, table_ptr, row, start, LENGTH, VOCAB, WIDTH, SOFT_CAP, TOKENS, WORDS, DEPTH, PRECISION
        )
        if tl.sum(((token_T >= start) & (token_T < start + WORDS)).to(tl.int32), 0) > 0:
            token_logit_T += tl.sum(tl.where(word[None, :] == token_T[:, None], logit_TV, 0.0), 1)
        if VOCAB % WORDS != 0:
            logit_TV = tl.where(word[None, :] < VOCAB, logit_TV, MASKED)
        if TRUNCATED:
            logit_TV = tl.where(logit_TV >= threshold_T[:, None], logit_TV, MASKED)
        higher_T = tl.maximum(peak_T, tl.max(logit_TV, 1))
        logit_TV -= higher_T[:, None]
        weight_TV = tl.exp2(logit_TV)
        shrink_T = tl.exp2(peak_T - higher_T)
        moment_T = shrink_T * (moment_T + total_T * (peak_T - higher_T)) + tl.sum(weight_TV * logit_TV, 1)
        total_T = shrink_T * total_T + tl.sum(weight_TV, 1)
        peak_T = higher_T

    place = share * LENGTH + row
    tl.store(peak_ptr + place, peak_T, mask=inside)
    tl.store(total_ptr + place, total_T, mask=inside)
    tl.store(moment_ptr + place, moment_T, mask=inside)
    tl.store(token_logit_ptr + place, token_logit_T, mask=inside)


@triton.jit
def logit_gradient(
    hidden_ptr,
    table_ptr,
    token_ptr,
    threshold_ptr,
    temperature_ptr,
    lse_ptr,
    entropy_ptr,
    logp_upstream_ptr,
    entropy_upstream_ptr,
    gradient_ptr,
    LENGTH: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    TRUNCATED: tl.constexpr,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of the products hidden . table for one tile of tokens and words."""
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = row < LENGTH
    start = tl.program_id(1) * WORDS
    word = start + tl.arange(0, WORDS)
    logit_TV = capped_logits(
        hidden_ptr, table_ptr, row, start, LENGTH, VOCAB, WIDTH, SOFT_CAP, TOKENS, WORDS, DEPTH, PRECISION
    )
    token_T = tl.load(token_ptr + row, mask=inside, other=0)
    lse_T = tl.load(lse_ptr + row, mask=inside, other=float("inf"))
    entropy_T = tl.load(entropy_ptr + row, mask=inside, other=0.0)
    logp_upstream_T = tl.load(logp_upstream_ptr + row, mask=inside, other=0.0)
    entropy_upstream_T = tl.load(entropy_upstream_ptr + row, mask=inside, other=0.0)
    coolness = 1 / tl.load(temperature_ptr)

    logp_TV = logit_TV * coolness - lse_T[:, None]
    weight_TV = tl.exp2(logp_TV * LOG2_E)
    if TRUNCATED:
        threshold_T = tl.load(threshold_ptr + row, mask=inside, other=float("-inf"))
        weight_TV = tl.where(logit_TV * coolness >= threshold_T[:, None], weight_TV, 0.0)
    pull_TV = logp_upstream_T[:, None] + entropy_upstream_T[:, None] * (logp_TV + entropy_T[:, None])
    gradient_TV = tl.where(word[None, :] == token_T[:, None], logp_upstream_T[:, None], 0.0) - weight_TV * pull_TV
    gradient_TV *= coolness
    if SOFT_CAP > 0:
        tanh_TV = logit_TV * (1 / SOFT_CAP)
        gradient_TV *= 1 - tanh_TV * tanh_TV
    gradient_ptr += tl.program_id(0).to(tl.int64) * (TOKENS * VOCAB) + start
    place_TV = tl.arange(0, TOKENS)[:, None] * VOCAB + tl.arange(0, WORDS)[None, :]
    written = inside[:, None] & (word[None, :] < VOCAB)
    tl.store(gradient_ptr + place_TV, gradient_TV.to(gradient_ptr.dtype.element_ty), mask=written)
