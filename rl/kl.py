"""Estimates of KL(policy || reference) from sampled tokens, one per token; y is sampled from the policy.

    x  = logp(y) - ref(y)
    k1 = x                                  unbiased, may be negative
    k2 = x^2 / 2                            biased, small variance
    k3 = exp(-x) + x - 1                    unbiased, never negative           (Schulman 2020)
    k3_k2 = sg(k3) + k2 - sg(k2)            the value of k3, the gradient of k2

What an estimate is worth as a loss is its gradient's expectation over y (Tang and Munos, arXiv 2506.09477):

    k1      0: d logp has mean 0 whatever the reference is.  It regularises nothing; a loss with it warns.
    k2      the gradient of KL(policy || reference), the quantity named
    k3      the gradient of KL(reference || policy): the other direction, equal to first order around the reference
    k3_k2   as k2
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from thinkfirst.rl import loss

Name = Literal["k1", "k2", "k3", "k3_k2"]


def k1(logp_BT: Float[Array, "B T"], ref_logp_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """The log-ratio itself: right on average, and without effect on average when differentiated."""
    return logp_BT - ref_logp_BT


def k2(logp_BT: Float[Array, "B T"], ref_logp_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Half the square of the log-ratio: never negative, with the gradient of KL(policy || reference)."""
    return 0.5 * (logp_BT - ref_logp_BT) ** 2


def k3(logp_BT: Float[Array, "B T"], ref_logp_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """exp(-x) + x - 1: right on average, never negative, 0 where the two agree."""
    difference_BT = ref_logp_BT - logp_BT
    return jnp.exp(jnp.clip(difference_BT, -loss.MAX_LOG_RATIO, loss.MAX_LOG_RATIO)) - difference_BT - 1.0


def k3_k2(logp_BT: Float[Array, "B T"], ref_logp_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """k3 to read, k2 to differentiate."""
    pull_BT = k2(logp_BT, ref_logp_BT)
    return jax.lax.stop_gradient(k3(logp_BT, ref_logp_BT)) + (pull_BT - jax.lax.stop_gradient(pull_BT))


ESTIMATORS: dict[Name, Callable[[Array, Array], Array]] = {"k1": k1, "k2": k2, "k3": k3, "k3_k2": k3_k2}
