"""The GRPO loss: arrays in, arrays out; everything float32.

With d = logp - old_logp and r = exp(d), per token

    surrogate = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
    kl        = exp(ref - logp) - (ref - logp) - 1                     (k3, Schulman 2020)
    loss      = sum_it w_it (surrogate_it + beta kl_it),   w_it = mask_it / (n_i B)

where n_i counts the completion tokens of row i (end of turn included) and B the rows of the whole optimiser batch.
Because w is fixed by the batch and not by how it is cut, the loss and gradient of micro-batches simply add up.
Source: GRPO, arXiv 2402.03300; the aggregation is TRL's loss_type "grpo".
"""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MAX_LOG_RATIO = 20.0  # exp of more overflows the gradient long before it means anything


@flax.struct.dataclass
class Terms:
    """Per-token parts of the loss, for metrics: all [B, T], meaningful where the mask is."""

    surrogate_BT: Float[Array, "B T"]
    kl_BT: Float[Array, "B T"]
    clipped_low_BT: Bool[Array, "B T"]
    clipped_high_BT: Bool[Array, "B T"]


def sequence_mean_weight(mask_BT: Bool[Array, "B T"], num_rows: int) -> Float[Array, "B T"]:
    """1 / (n_i B) on the tokens that count: every sequence weighs the same, whatever its length."""
    count_B = jnp.maximum(mask_BT.sum(axis=1, dtype=jnp.float32), 1.0)
    return mask_BT.astype(jnp.float32) / (count_B[:, None] * num_rows)


def clipped_surrogate(
    logp_BT: Float[Array, "B T"],
    old_logp_BT: Float[Array, "B T"],
    advantage_B: Float[Array, "B"],
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"], Bool[Array, "B T"]]:
    """(PPO's clipped surrogate as a loss, clipped below with A < 0, clipped above with A > 0)."""
    ratio_BT = jnp.exp(jnp.clip(logp_BT - old_logp_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    advantage_BT = jnp.broadcast_to(advantage_B[:, None], logp_BT.shape)
    clipped_BT = jnp.clip(ratio_BT, 1.0 - clip_low, 1.0 + clip_high)
    loss_BT = -jnp.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    low_BT = (ratio_BT < 1.0 - clip_low) & (advantage_BT < 0)
    high_BT = (ratio_BT > 1.0 + clip_high) & (advantage_BT > 0)
    return loss_BT, low_BT, high_BT


def kl_k3(logp_BT: Float[Array, "B T"], ref_logp_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """k3 estimate of KL(policy || reference) per token: never negative, 0 where the two agree."""
    difference_BT = ref_logp_BT - logp_BT
    return jnp.exp(jnp.clip(difference_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)) - difference_BT - 1.0


def grpo(
    logp_BT: Float[Array, "B T"],
    old_logp_BT: Float[Array, "B T"],
    ref_logp_BT: Float[Array, "B T"],
    advantage_B: Float[Array, "B"],
    mask_BT: Bool[Array, "B T"],
    *,
    num_rows: int,
    beta: float,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Array, ""], Terms]:
    """This micro-batch's share of the loss of a batch of `num_rows` rows, and its terms."""
    weight_BT = sequence_mean_weight(mask_BT, num_rows)
    surrogate_BT, low_BT, high_BT = clipped_surrogate(
        logp_BT, old_logp_BT, advantage_B, clip_low=clip_low, clip_high=clip_high
    )
    kl_BT = kl_k3(logp_BT, ref_logp_BT)
    total = jnp.where(mask_BT, weight_BT * (surrogate_BT + beta * kl_BT), 0.0).sum()
    return total, Terms(surrogate_BT, kl_BT, low_BT & mask_BT, high_BT & mask_BT)
