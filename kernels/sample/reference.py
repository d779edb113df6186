"""Logits to one sampled token per row: temperature, then top-k, top-p, min-p; what is kept is said in floor.py.

The draw is Gumbel-max in two steps.  The vocabulary is cut into blocks of BLOCK words:
    block = argmax over blocks of log(sum of exp(z / temperature) over its kept words) + noise
    token = argmax over the kept words of that block of z / temperature + noise
The first has the block's share of the mass as its probability, the second the word's share of the block's, so a word
has its own, for V / BLOCK + BLOCK values of noise in place of V.  Like Gumbel-max over all words, and unlike the
inverse of the distribution function, it takes rounding well: logits off by e change a token with a probability of the
order of e, however many words there are.

A row whose logits hold a NaN, or are all -inf, or reach +inf, gets token 0, log-prob NaN and the floor -inf.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from thinkfirst.kernels.sample import floor, noise

BLOCK = 256

Drawn = tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]


def sample(
    logit_BV: Float[Array, "B V"],
    key_B: Key[Array, "B"],
    *,
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    min_p: Float[Array, ""],
    truncated: bool = True,
) -> Drawn:
    """(token, log-prob under the sampled distribution, floor) of each row; temperature 0 takes the likeliest.

    `truncated=False` says that top-k, top-p and min-p are off, and nothing is compiled for them.
    """
    batch, size = logit_BV.shape
    width = min(BLOCK, size)
    greedy: Bool[Array, ""] = temperature == 0
    rate = 1 / jnp.where(greedy, 1.0, temperature)
    cut = jnp.pad(logit_BV, ((0, 0), (0, -size % width)), constant_values=-jnp.inf).reshape(batch, -1, width)
    top_BC = cut.max(axis=2)
    most_B = top_BC.max(axis=1)
    scaled = (cut - most_B[:, None, None]) * rate
    mass_BC = jnp.exp(scaled).sum(axis=2)
    lse_B = jnp.log(mass_BC.sum(axis=1))  # of `scaled`, as are all that follow
    fault_B = ~jnp.isfinite(lse_B)
    least_B = floor_B = jnp.full((batch,), -jnp.inf, jnp.float32)
    if truncated:
        floor_B = _floor_if_asked(
            scaled.reshape(batch, -1)[:, :size] - lse_B[:, None],
            greedy=greedy,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
        )
        floor_B = jnp.where(fault_B, -jnp.inf, floor_B)
        least_B = floor_B + lse_B
        mass_BC = jnp.where(scaled >= least_B[:, None, None], jnp.exp(scaled), 0.0).sum(axis=2)
        lse_B = jnp.log(mass_BC.sum(axis=1))

    num_blocks = cut.shape[1]
    gumbel = jax.vmap(lambda key: jax.random.gumbel(key, (num_blocks + width,)))(key_B)
    score_BC = jnp.where(greedy, top_BC, jnp.log(mass_BC) + gumbel[:, :num_blocks])
    block_B1 = jnp.argmax(score_BC, axis=1)[:, None]
    inside = (jnp.take_along_axis(cut, block_B1[:, :, None], axis=1)[:, 0] - most_B[:, None]) * rate
    noisy = jnp.where(inside >= least_B[:, None], inside + jnp.where(greedy, 0.0, gumbel[:, num_blocks:]), -jnp.inf)
    place_B1 = jnp.argmax(noisy, axis=1)[:, None]
    token_B = (block_B1 * width + place_B1)[:, 0].astype(jnp.int32)
    logp_B = jnp.take_along_axis(inside, place_B1, axis=1)[:, 0] - lse_B
    return jnp.where(fault_B, 0, token_B), jnp.where(fault_B, jnp.nan, logp_B), floor_B


def _floor_if_asked(
    logp_BV: Float[Array, "B V"],
    *,
    greedy: Bool[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    min_p: Float[Array, ""],
) -> Float[Array, "B"]:
    return jax.lax.cond(
        asked(greedy=greedy, top_k=top_k, top_p=top_p, min_p=min_p),
        lambda: floor.truncation_floor(logp_BV, top_k, top_p, min_p),
        lambda: jnp.full(logp_BV.shape[:1], -jnp.inf, logp_BV.dtype),
    )


def asked(
    *, greedy: Bool[Array, ""], top_k: Int[Array, ""], top_p: Float[Array, ""], min_p: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether these settings may drop a token."""
    return ~greedy & ((top_k > 0) | (top_p < 1.0) | (min_p > 0.0))


def sample_counter(
    logit_BV: Float[Array, "B V"],
    key_B: Key[Array, "B"],
    *,
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    min_p: Float[Array, ""],
) -> Drawn:
    """What the TPU kernel draws, said as plainly as can be: noise.py's value for every word, the floor by sorting."""
    greedy: Bool[Array, ""] = temperature == 0
    logp_BV = jax.nn.log_softmax(logit_BV / jnp.where(greedy, 1.0, temperature), axis=1)
    floor_B = jax.lax.cond(
        asked(greedy=greedy, top_k=top_k, top_p=top_p, min_p=min_p),
        lambda: truncation_floor(logp_BV, top_k, top_p, min_p),
        lambda: jnp.full(logp_BV.shape[:1], -jnp.inf, logp_BV.dtype),
    )
    kept_BV = logp_BV >= floor_B[:, None]
    noise_BV = noise.gumbel_rows(noise.key_words(key_B), jnp.arange(logit_BV.shape[1], dtype=jnp.int32))
    noisy_BV = jnp.where(kept_BV, logp_BV + jnp.where(greedy, 0.0, noise_BV), -jnp.inf)
    token_B = jnp.argmax(noisy_BV, axis=1).astype(jnp.int32)
    token_logp_B = jnp.take_along_axis(logp_BV, token_B[:, None], axis=1)[:, 0]
    return token_B, token_logp_B - jax.nn.logsumexp(logp_BV, axis=1, where=kept_BV), floor_B


def truncation_floor(
    logp_BV: Float[Array, "B V"], top_k: Int[Array, ""], top_p: Float[Array, ""], min_p: Float[Array, ""]
) -> Float[Array, "B"]:
    """What `floor.truncation_floor` finds, by sorting every row."""
    size = logp_BV.shape[1]
    sorted_BV = -jnp.sort(-logp_BV, axis=1)
    rank_V = jnp.arange(size)
    in_k_BV = (rank_V < jnp.where(top_k > 0, top_k, size))[None, :]
    prob_BV = jnp.where(in_k_BV, jnp.exp(sorted_BV), 0.0)
    prob_BV = prob_BV / prob_BV.sum(axis=1, keepdims=True)
    before_BV = jnp.cumsum(prob_BV, axis=1) - prob_BV
    in_p_BV = (before_BV < top_p) | (top_p >= 1.0)
    near_BV = sorted_BV >= sorted_BV[:, :1] + jnp.log(min_p)
    wanted_B1 = jnp.maximum((in_k_BV & in_p_BV & near_BV).sum(axis=1), 1)[:, None]
    next_BV = jnp.concatenate([sorted_BV[:, 1:], jnp.full_like(sorted_BV[:, :1], -jnp.inf)], axis=1)
    clear_BV = (sorted_BV - next_BV > floor.NEAR_TIE) | (next_BV < floor.NEGLIGIBLE)
    last_B1 = jnp.argmax(clear_BV & (rank_V + 1 >= wanted_B1), axis=1)[:, None]
    return jnp.take_along_axis((sorted_BV + next_BV) / 2, last_B1, axis=1)[:, 0]
