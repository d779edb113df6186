"""Policy losses per token, and the weights that sum them up: arrays in, arrays out; everything float32.

A row of [B, T] is the completion tokens, end of turn included, of one sample or of several, wherever the model saw
them; `sample_BT` numbers the samples from 1 and is 0 where there is no token.
With d = logp - old_logp, r = exp(d), n_i the tokens of sample i, and A its advantage, a surrogate is one of

    clipped    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)                       PPO, arXiv 1707.06347
      dual       the same, but at most -c A where A < 0                                arXiv 1912.09729
      higher     clip_high > clip_low                                                  DAPO, arXiv 2503.14476
      sequence   r = exp(sum_t d / n_i), the same at every token of the sample       GSPO, arXiv 2507.18071
    capped     -sg(min(r, cap)) A logp                                                 CISPO, arXiv 2506.13585
    gated      -(4 / tau) sigmoid(tau (r - 1)) A,  tau by the sign of A                SAPO, arXiv 2511.20347

and the loss is sum_it w_it surrogate_it, where w is one of

    sequence_mean_weight   1 / (n_i S)            every sequence weighs the same       GRPO, arXiv 2402.03300
    token_mean_weight      1 / N                  every token weighs the same          DAPO; TRL's "bnpo"
    constant_weight        1 / (S max_tokens)     length does not enter                Dr. GRPO, arXiv 2503.20783

The samples S and their tokens N = sum_i n_i are counted over the whole optimiser batch.  The caller gives them, so that
the losses and gradients of micro-batches simply add up, however the batch is cut and packed.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MAX_LOG_RATIO = 20.0  # exp of more overflows the gradient long before it means anything


@flax.struct.dataclass
class Surrogate:
    """A loss per token, meaningful where the mask is, and where the trust region bound it.

    `low`: below with A < 0, `high`: above with A > 0; there the gradient is 0 (of a capped loss: smaller).
    """

    loss_BT: Float[Array, "B T"]
    low_BT: Bool[Array, "B T"]
    high_BT: Bool[Array, "B T"]


def sample_sum(value_BT: Float[Array, "B T"], sample_BT: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """The sum over the tokens of a sample, at each of them; 0 where there is no sample."""
    same = (sample_BT[:, :, None] == sample_BT[:, None, :]) & (sample_BT[:, :, None] > 0)
    return jnp.where(same, value_BT[:, None, :], 0.0).sum(axis=2)  # no array [B, T, T]: XLA compares as it adds


def sample_count(sample_BT: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """n_i at every token of sample i; 1 where there is no sample."""
    return jnp.maximum(sample_sum((sample_BT > 0).astype(jnp.float32), sample_BT), 1.0)


def token_log_ratio(logp_BT: Float[Array, "B T"], old_logp_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """d of every token."""
    return jnp.clip(logp_BT - old_logp_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def sequence_log_ratio(
    logp_BT: Float[Array, "B T"], old_logp_BT: Float[Array, "B T"], sample_BT: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """sum_t d / n_i at every token of sample i (GSPO): the log-ratio of whole sequences, per token."""
    count_BT = sample_count(sample_BT).astype(logp_BT.dtype)
    return jnp.clip(sample_sum(logp_BT - old_logp_BT, sample_BT) / count_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def sequence_token_log_ratio(
    logp_BT: Float[Array, "B T"], old_logp_BT: Float[Array, "B T"], sample_BT: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """sg(sum_t d / n_i) + logp - sg(logp): the sequence's value, each token's own gradient (GSPO-token)."""
    mean_BT = jax.lax.stop_gradient(sequence_log_ratio(logp_BT, old_logp_BT, sample_BT))
    return mean_BT + (logp_BT - jax.lax.stop_gradient(logp_BT))


def clipped(
    log_ratio_BT: Float[Array, "B T"],
    advantage_BT: Float[Array, "B T"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
) -> Surrogate:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), and with `dual_clip` = c > 0 at most -c A where A < 0."""
    ratio_BT = jnp.exp(log_ratio_BT)
    clipped_BT = jnp.clip(ratio_BT, 1.0 - clip_low, 1.0 + clip_high)
    loss_BT = -jnp.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    if dual_clip:
        loss_BT = jnp.where(advantage_BT < 0, jnp.minimum(loss_BT, -dual_clip * advantage_BT), loss_BT)
    low_BT = (ratio_BT < 1.0 - clip_low) & (advantage_BT < 0)
    high_BT = (ratio_BT > 1.0 + clip_high) & (advantage_BT > 0)
    return Surrogate(loss_BT, low_BT, high_BT)


def capped(
    logp_BT: Float[Array, "B T"], old_logp_BT: Float[Array, "B T"], advantage_BT: Float[Array, "B T"], *, cap: float
) -> Surrogate:
    """-sg(min(r, cap)) A logp (CISPO): the weight of a token is bounded, but no token loses its gradient."""
    ratio_BT = jnp.exp(jax.lax.stop_gradient(token_log_ratio(logp_BT, old_logp_BT)))
    loss_BT = -jnp.minimum(ratio_BT, cap) * advantage_BT * logp_BT
    return Surrogate(loss_BT, jnp.zeros_like(ratio_BT, bool), (ratio_BT > cap) & (advantage_BT > 0))


def gated(
    log_ratio_BT: Float[Array, "B T"], advantage_BT: Float[Array, "B T"], *, tau_positive: float, tau_negative: float
) -> Surrogate:
    """-(4 / tau) sigmoid(tau (r - 1)) A (SAPO): on policy the gradient of PPO, and less of it the further away.

    tau is `tau_positive` where A > 0, else `tau_negative`.  Nothing is clipped.
    """
    ratio_BT = jnp.exp(log_ratio_BT)
    tau_BT = jnp.where(advantage_BT > 0, tau_positive, tau_negative).astype(ratio_BT.dtype)
    loss_BT = -(4.0 / tau_BT) * jax.nn.sigmoid(tau_BT * (ratio_BT - 1.0)) * advantage_BT
    nowhere_BT = jnp.zeros_like(ratio_BT, bool)
    return Surrogate(loss_BT, nowhere_BT, nowhere_BT)


def sequence_mean_weight(sample_BT: Int[Array, "B T"], num_samples: int | Float[Array, ""]) -> Float[Array, "B T"]:
    """1 / (n_i S) on the tokens that count: every sequence weighs the same, whatever its length."""
    return (sample_BT > 0).astype(jnp.float32) / (sample_count(sample_BT) * num_samples)


def token_mean_weight(sample_BT: Int[Array, "B T"], num_tokens: Float[Array, ""]) -> Float[Array, "B T"]:
    """1 / N on the tokens that count: every token weighs the same, and a long sequence more than a short one.

    TRL's "bnpo" divides by the tokens of the micro-batch, its "dapo" by those of the batch; N of the batch makes one of
    the two.
    """
    return (sample_BT > 0).astype(jnp.float32) / jnp.maximum(num_tokens, 1.0)


def constant_weight(
    sample_BT: Int[Array, "B T"], num_samples: int | Float[Array, ""], max_tokens: int
) -> Float[Array, "B T"]:
    """1 / (S max_tokens) on the tokens that count: a token's weight does not depend on how long any answer became."""
    return (sample_BT > 0).astype(jnp.float32) / (num_samples * float(max_tokens))
