"""The objective that a configuration names, put together from `loss`, `kl`, `correction` and `entropy`.

    total = sum_it w_it (keep_it c_it surrogate_it + beta kl_it - entropy_bonus H_it)

surrogate and w are in `loss`, kl in `kl`, the sampler correction c in `correction`; keep is 1 for the tokens with the
largest entropies (`entropy`).  keep, c and w carry no gradient.  w does not change with keep: it counts every token.
"""

import dataclasses
import logging
import typing
from collections.abc import Callable
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from thinkfirst.rl import correction as correction_lib
from thinkfirst.rl import kl as kl_lib
from thinkfirst.rl import loss

Name = Literal["grpo", "bnpo", "dapo", "dr_grpo", "gspo", "gspo_token", "cispo", "sapo"]
Average = Literal["own", "sequence", "token", "constant"]

OWN_AVERAGE: dict[Name, Average] = {
    "grpo": "sequence",
    "bnpo": "token",
    "dapo": "token",
    "dr_grpo": "constant",
    "gspo": "sequence",
    "gspo_token": "sequence",
    "cispo": "token",
    "sapo": "sequence",
}


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Which objective, its trust region, and the terms added to it.  A setting an objective has no use for is not read.

    `objective` names surrogate and average, not the clips of its paper: DAPO has clip_high=0.28, GSPO 3e-4 and 4e-4.
    `average` "own" is that of the objective.  `max_tokens` divides in the "constant" average; 0 is the room for
    new tokens, which `within` puts there.  `dual_clip` bounds the clipped losses with A < 0; 0 does not.
    `cispo_cap` bounds the ratio of CISPO; `sapo_positive` and `sapo_negative` are the temperatures of SAPO's gate.
    `correction` weighs the policy term within `correction_low` and `correction_high`; `top_entropy` is the share of the
    batch's tokens that the policy term keeps.
    """

    beta: float = 0.03
    clip_low: float = 0.2
    clip_high: float = 0.2
    objective: Name = "grpo"
    average: Average = "own"
    max_tokens: int = 0
    dual_clip: float = 0.0
    cispo_cap: float = 5.0
    sapo_positive: float = 1.0
    sapo_negative: float = 1.05
    kl: kl_lib.Name = "k3"
    correction: correction_lib.Name = "none"
    correction_low: float = 0.0
    correction_high: float = 2.0
    entropy_bonus: float = 0.0
    top_entropy: float = 1.0

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for name in ("objective", "average", "kl", "correction"):
            if getattr(self, name) not in typing.get_args(kinds[name]):
                raise self._wrong(name, f"is none of {', '.join(typing.get_args(kinds[name]))}")
        for name in ("beta", "clip_high", "max_tokens", "correction_low", "entropy_bonus"):
            if not getattr(self, name) >= 0:
                raise self._wrong(name, "must not be negative")
        for name in ("cispo_cap", "sapo_positive", "sapo_negative"):
            if not getattr(self, name) > 0:
                raise self._wrong(name, "must be above 0")
        if not 0 <= self.clip_low <= 1:
            raise self._wrong("clip_low", "must lie in [0, 1]: a ratio is never below 0")
        if self.dual_clip and not self.dual_clip > 1 + self.clip_high:
            raise self._wrong("dual_clip", f"must be 0 (off) or above 1 + clip_high = {1 + self.clip_high}")
        if self.dual_clip and self.objective in ("cispo", "sapo"):
            raise self._wrong("dual_clip", f"bounds clipped losses, and {self.objective} does not clip")
        if not self.correction_low <= 1 <= self.correction_high:
            bounds = f"{self.correction_low} to {self.correction_high}"
            raise ValueError(f"loss: correction_low to correction_high must contain 1, where nothing differs: {bounds}")
        if not 0 < self.top_entropy <= 1:
            raise self._wrong("top_entropy", "must lie in (0, 1]")

    def within(self, room: int) -> "LossConfig":
        """The same, with `room` for max_tokens where that is 0."""
        return dataclasses.replace(self, max_tokens=self.max_tokens or room)

    def averaging(self) -> Average:
        """The average, the objective's own by its name."""
        return OWN_AVERAGE[self.objective] if self.average == "own" else self.average

    def _wrong(self, name: str, why: str) -> ValueError:
        return ValueError(f"loss: {name}={getattr(self, name)!r} {why}")


@flax.struct.dataclass
class Tokens:
    """What is known of the completions in some rows of the batch, [B, T] over completion tokens.

    `sample_BT` numbers the samples from 1, 0 where there is no token; a sample has one advantage, at all its tokens.
    `old_logp_BT` is the policy that the trust region is around, `sampler_logp_BT` what the engine sampled from,
    `entropy_floor` the entropy that a token of the whole batch needs to be kept; -inf keeps all.
    """

    logp_BT: Float[Array, "B T"]
    entropy_BT: Float[Array, "B T"]
    old_logp_BT: Float[Array, "B T"]
    sampler_logp_BT: Float[Array, "B T"]
    ref_logp_BT: Float[Array, "B T"]
    advantage_BT: Float[Array, "B T"]
    sample_BT: Int[Array, "B T"]
    entropy_floor: Float[Array, ""]

    @property
    def mask_BT(self) -> Bool[Array, "B T"]:
        return self.sample_BT > 0


@flax.struct.dataclass
class Totals:
    """Samples and completion tokens of the whole optimiser batch, however it is cut and packed."""

    num_samples: int | Float[Array, ""]
    num_tokens: Float[Array, ""]


@flax.struct.dataclass
class Terms:
    """Per-token parts of the loss, for metrics: all [B, T], meaningful where the mask is."""

    weight_BT: Float[Array, "B T"]
    surrogate_BT: Float[Array, "B T"]
    kl_BT: Float[Array, "B T"]
    clipped_low_BT: Bool[Array, "B T"]
    clipped_high_BT: Bool[Array, "B T"]


Objective = Callable[[Tokens, Totals], tuple[Float[Array, ""], Terms]]


def make(config: LossConfig) -> Objective:
    """objective(tokens, totals) -> (those rows' share of the loss of the whole batch, its terms)."""
    estimate = kl_lib.ESTIMATORS[config.kl]
    if config.averaging() == "constant" and not config.max_tokens:
        raise ValueError("loss: the constant average divides by max_tokens, which is 0")
    if config.kl == "k1" and config.beta > 0:
        logging.getLogger(__name__).warning(
            "loss: beta=%s with kl=k1 pulls nowhere: its expected gradient is zero. k3_k2 has the gradient of the KL.",
            config.beta,
        )

    def objective(tokens: Tokens, totals: Totals) -> tuple[Float[Array, ""], Terms]:
        tokens = _cleared(tokens)
        found = surrogate(config, tokens)
        policy_BT = found.loss_BT
        if config.correction != "none":
            policy_BT = policy_BT * correction_lib.weight(
                config.correction,
                tokens.old_logp_BT,
                tokens.sampler_logp_BT,
                tokens.sample_BT,
                low=config.correction_low,
                high=config.correction_high,
            )
        if config.top_entropy < 1:
            policy_BT = jnp.where(tokens.entropy_BT >= tokens.entropy_floor, policy_BT, 0.0)
        kl_BT = estimate(tokens.logp_BT, tokens.ref_logp_BT)
        each_BT = policy_BT + config.beta * kl_BT
        if config.entropy_bonus:
            each_BT = each_BT - config.entropy_bonus * tokens.entropy_BT
        weight_BT = weights(config, tokens.sample_BT, totals).astype(each_BT.dtype)
        total = jnp.where(tokens.mask_BT, weight_BT * each_BT, 0.0).sum()
        low_BT, high_BT = found.low_BT & tokens.mask_BT, found.high_BT & tokens.mask_BT
        return total, Terms(weight_BT, policy_BT, kl_BT, low_BT, high_BT)

    return objective


def surrogate(config: LossConfig, tokens: Tokens) -> loss.Surrogate:
    """The policy loss of every token, before corrections and averages."""
    logp_BT, old_logp_BT, sample_BT = tokens.logp_BT, tokens.old_logp_BT, tokens.sample_BT
    if config.objective == "cispo":
        return loss.capped(logp_BT, old_logp_BT, tokens.advantage_BT, cap=config.cispo_cap)
    if config.objective == "sapo":
        return loss.gated(
            loss.token_log_ratio(logp_BT, old_logp_BT),
            tokens.advantage_BT,
            tau_positive=config.sapo_positive,
            tau_negative=config.sapo_negative,
        )
    if config.objective == "gspo":
        log_ratio_BT = loss.sequence_log_ratio(logp_BT, old_logp_BT, sample_BT)
    elif config.objective == "gspo_token":
        log_ratio_BT = loss.sequence_token_log_ratio(logp_BT, old_logp_BT, sample_BT)
    else:
        log_ratio_BT = loss.token_log_ratio(logp_BT, old_logp_BT)
    return loss.clipped(
        log_ratio_BT,
        tokens.advantage_BT,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
    )


def weights(config: LossConfig, sample_BT: Int[Array, "B T"], totals: Totals) -> Float[Array, "B T"]:
    """What a token counts in the loss of the whole batch."""
    average = config.averaging()
    if average == "token":
        return loss.token_mean_weight(sample_BT, totals.num_tokens)
    if average == "constant":
        return loss.constant_weight(sample_BT, totals.num_samples, config.max_tokens)
    return loss.sequence_mean_weight(sample_BT, totals.num_samples)


def _cleared(tokens: Tokens) -> Tokens:
    """The same with 0 wherever the mask is not: NaN there would come back through the gradient as 0 * NaN."""
    clear = lambda x: jnp.where(tokens.mask_BT, x, 0.0)  # noqa: E731
    return dataclasses.replace(
        tokens,
        logp_BT=clear(tokens.logp_BT),
        entropy_BT=clear(tokens.entropy_BT),
        old_logp_BT=clear(tokens.old_logp_BT),
        sampler_logp_BT=clear(tokens.sampler_logp_BT),
        ref_logp_BT=jax.lax.stop_gradient(clear(tokens.ref_logp_BT)),
    )
