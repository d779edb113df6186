"""Sampling one token per row: temperature, then top-k, then top-p, drawn by the Gumbel-max trick.

The kept set is {v : logp_v >= floor} with logp the log-softmax at the given temperature.  A learner whose numbers
differ in the last bits must keep the same set, so the floor lies half-way between the last kept and the first dropped
log-probability, and where those two are nearly tied the next tokens are kept too, until a gap opens or until a
dropped token is so unlikely that it could not change a log-prob noticeably.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from thinkfirst.kernels.sample import noise

NEAR_TIE = 1e-4  # nats between neighbours in rank
NEGLIGIBLE = -14.0  # log-probability (8e-7) below which a wrongly kept token does not matter


def truncation_floor(logp_BV: Float[Array, "B V"], top_k: Int[Array, ""], top_p: Float[Array, ""]) -> Float[Array, "B"]:
    """Log-probability below which top-k, then top-p over what top-k left, drop a token; -inf if they drop none."""
    size = logp_BV.shape[1]
    sorted_BV = -jnp.sort(-logp_BV, axis=1)
    rank_V = jnp.arange(size)
    in_k_BV = (rank_V < jnp.where(top_k > 0, top_k, size))[None, :]
    prob_BV = jnp.where(in_k_BV, jnp.exp(sorted_BV), 0.0)
    prob_BV = prob_BV / prob_BV.sum(axis=1, keepdims=True)
    before_BV = jnp.cumsum(prob_BV, axis=1) - prob_BV
    in_p_BV = (before_BV < top_p) | (top_p >= 1.0)
    wanted_B1 = jnp.maximum((in_k_BV & in_p_BV).sum(axis=1), 1)[:, None]
    next_BV = jnp.concatenate([sorted_BV[:, 1:], jnp.full_like(sorted_BV[:, :1], -jnp.inf)], axis=1)
    clear_BV = (sorted_BV - next_BV > NEAR_TIE) | (next_BV < NEGLIGIBLE)
    last_B1 = jnp.argmax(clear_BV & (rank_V + 1 >= wanted_B1), axis=1)[:, None]
    return jnp.take_along_axis((sorted_BV + next_BV) / 2, last_B1, axis=1)[:, 0]


def sample(
    logit_BV: Float[Array, "B V"],
    key_B: Key[Array, "B"],
    *,
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """(token, log-prob under the sampled distribution, floor) of each row; temperature 0 takes the likeliest."""
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logit_BV.shape[1:], logit_BV.dtype))(key_B)
    return _draw(logit_BV, noise_BV, temperature=temperature, top_k=top_k, top_p=top_p)


def sample_counter(
    logit_BV: Float[Array, "B V"],
    key_B: Key[Array, "B"],
    *,
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """What `sample` gives with the noise of noise.py, whose every value can be had by itself: the kernel's tokens."""
    index_V = jnp.arange(logit_BV.shape[1], dtype=jnp.int32)
    noise_BV = noise.gumbel_rows(noise.key_words(key_B), index_V)
    return _draw(logit_BV, noise_BV, temperature=temperature, top_k=top_k, top_p=top_p)


def _draw(
    logit_BV: Float[Array, "B V"],
    noise_BV: Float[Array, "B V"],
    *,
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    greedy: Bool[Array, ""] = temperature == 0
    logp_BV = jax.nn.log_softmax(logit_BV / jnp.where(greedy, 1.0, temperature), axis=1)
    truncating = ~greedy & ((top_k > 0) | (top_p < 1.0))
    floor_B = jax.lax.cond(
        truncating,
        lambda: truncation_floor(logp_BV, top_k, top_p),
        lambda: jnp.full(logp_BV.shape[:1], -jnp.inf, logp_BV.dtype),
    )
    kept_BV = logp_BV >= floor_B[:, None]
    noisy_BV = jnp.where(kept_BV, logp_BV + jnp.where(greedy, 0.0, noise_BV), -jnp.inf)
    token_B = jnp.argmax(noisy_BV, axis=1).astype(jnp.int32)
    token_logp_B = jnp.take_along_axis(logp_BV, token_B[:, None], axis=1)[:, 0]
    return token_B, token_logp_B - jax.nn.logsumexp(logp_BV, axis=1, where=kept_BV), floor_B
