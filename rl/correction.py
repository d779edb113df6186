"""Weights that make up for sampling with other log-probs than those trained on; they carry no gradient.

Engine and learner compute the log-probs of the same tokens differently (other kernels, another precision, older
weights), so samples drawn with `sampler_logp` are weighted to stand for the policy the learner computes, `old_logp`:

    token      w_t = exp(old_t - sampler_t)                           per token, biased for sequences, small variance
    sequence   w   = exp(sum_t (old_t - sampler_t))                   unbiased, and its variance grows with the length
    truncate   min(max(w, low), high)                                 truncated importance sampling (Ionides 2008)
    mask       w where low <= w <= high, else 0                       such tokens or sequences are left out

The policy term of the loss is multiplied by w, the KL and entropy terms are not.
For language models: Yao et al. 2025 (token, truncated); IcePop, arXiv 2510.18855 (token, masked).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from thinkfirst.rl import loss

Name = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def token_ratio(old_logp_BT: Float[Array, "B T"], sampler_logp_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """exp(old - sampler) of every token."""
    gap_BT = jax.lax.stop_gradient(old_logp_BT - sampler_logp_BT)
    return jnp.exp(jnp.clip(gap_BT, -loss.MAX_LOG_RATIO, loss.MAX_LOG_RATIO))


def sequence_ratio(
    old_logp_BT: Float[Array, "B T"], sampler_logp_BT: Float[Array, "B T"], sample_BT: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """exp of the sum of old - sampler over a sample's tokens, at every one of them; 1 where there is no sample."""
    gap_BT = loss.sample_sum(jax.lax.stop_gradient(old_logp_BT - sampler_logp_BT), sample_BT)
    return jnp.exp(jnp.clip(gap_BT, -loss.MAX_LOG_RATIO, loss.MAX_LOG_RATIO))


def truncated(ratio_BT: Float[Array, "B T"], *, low: float, high: float) -> Float[Array, "B T"]:
    """Ratios beyond `low` and `high` moved there."""
    return jnp.clip(ratio_BT, low, high)


def masked(ratio_BT: Float[Array, "B T"], *, low: float, high: float) -> Float[Array, "B T"]:
    """Ratios beyond `low` and `high` replaced by 0."""
    return jnp.where((ratio_BT >= low) & (ratio_BT <= high), ratio_BT, 0.0)


def weight(
    name: Name,
    old_logp_BT: Float[Array, "B T"],
    sampler_logp_BT: Float[Array, "B T"],
    sample_BT: Int[Array, "B T"],
    *,
    low: float,
    high: float,
) -> Float[Array, "B T"]:
    """The weights that `name` asks for; 1 everywhere for "none"."""
    if name == "none":
        return jnp.ones_like(old_logp_BT)
    level, _, bound = name.partition("_")
    if level == "token":
        ratio_BT = token_ratio(old_logp_BT, sampler_logp_BT)
    else:
        ratio_BT = sequence_ratio(old_logp_BT, sampler_logp_BT, sample_BT)
    return (truncated if bound == "truncate" else masked)(ratio_BT, low=low, high=high)
