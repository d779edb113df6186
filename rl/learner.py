"""The GRPO train step: policy and reference log-probs of an Experience, loss, gradient of the adapter, optimiser.

docs/learner.md says what does not change the step: how its rows are cut, spread over devices, and packed.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from thinkfirst.models import gemma, lora
from thinkfirst.models import remat as remat_lib
from thinkfirst.rl import batch, entropy, loss, objective, update
from thinkfirst.rl import correction as correction_lib

Logprobs = tuple[Float[Array, "B T"], Float[Array, "B T"]]


def completion_logprob(
    model: gemma.Model,
    params: gemma.Params,
    adapter: lora.Adapter | None,
    rows: batch.Rows,
    *,
    floor_BT: Float[batch.AnyArray, "B T"] | None = None,
    temperature: Float[Array, ""] | None = None,
    remat: remat_lib.Name = "none",
    entropy_gradient: bool = False,
) -> Logprobs:
    """(log-prob, entropy) of every completion token of `rows.column_BT`, under the distribution it was sampled from."""
    hidden_BTD = model.hidden(
        params, jnp.asarray(rows.tokens_BT), segment_BT=jnp.asarray(rows.segment_BT), adapter=adapter, remat=remat
    )
    before_BT = jnp.maximum(jnp.asarray(rows.column_BT) - 1, 0)
    return model.token_logprob(
        params,
        jnp.take_along_axis(hidden_BTD, before_BT[:, :, None], axis=1),
        rows.completion_BT,
        floor_BT=None if floor_BT is None else jnp.asarray(floor_BT),
        temperature=temperature,
        entropy_gradient=entropy_gradient,
    )


def make_scorer(model: gemma.Model, *, micro_batches: int) -> Callable[..., Float[Array, "B T"]]:
    """score(adapter, params, experience, temperature) -> log-prob of every completion token under that policy."""

    def score(
        adapter: lora.Adapter | None, params: gemma.Params, known: batch.Experience, temperature: jax.Array
    ) -> Float[Array, "B T"]:
        parts = update.cut(known, micro_batches)
        return update.joined(_scored(model, params, adapter, parts, temperature)[0])

    return jax.jit(score)


def make_step(
    model: gemma.Model,
    transform: optax.GradientTransformation,
    config: objective.LossConfig,
    *,
    micro_batches: int,
    remat: remat_lib.Name,
) -> Callable[..., Any]:
    """step(adapter, opt_state, params, experience, temperature) -> adapter', opt_state', metrics.

    The reference policy is `params` with the adapter off; beta 0 asks for none.  Rows are cut into `micro_batches`
    parts whose losses and gradients add up to the batch's.  Without any completion token whose advantage is not zero,
    or with anything that is not finite, nothing is updated (`update.take`).  adapter and opt_state are donated.

    With a correction for the sampler, the trust region is around the learner's own policy: the one in `old_logp_BT`
    where `sampler_logp_BT` stands beside it, else the one being updated.
    """

    loss_of = objective.make(config)

    def tokens_of(adapter: lora.Adapter, params: gemma.Params, known: batch.Experience, **given: Any) -> Any:
        """(objective.Tokens, what is to be finite) of a micro-batch."""
        logprob = functools.partial(
            completion_logprob, model, params, floor_BT=known.floor_BT, temperature=given["temperature"], remat=remat
        )
        logp_BT, entropy_BT = logprob(adapter, known.rows, entropy_gradient=config.entropy_bonus > 0)
        ref_logp_BT = jax.lax.stop_gradient(logp_BT)
        if config.beta > 0:
            with jax.named_scope("score"):
                ref_logp_BT, _ = logprob(None, known.rows)
        stored_logp_BT = jnp.asarray(known.old_logp_BT)
        own = config.correction != "none" and known.sampler_logp_BT is None
        tokens = objective.Tokens(
            logp_BT=logp_BT,
            entropy_BT=entropy_BT,
            old_logp_BT=jax.lax.stop_gradient(logp_BT) if own else stored_logp_BT,
            sampler_logp_BT=stored_logp_BT if known.sampler_logp_BT is None else jnp.asarray(known.sampler_logp_BT),
            ref_logp_BT=ref_logp_BT,
            advantage_BT=jnp.asarray(known.advantage_BT),
            sample_BT=known.rows.sample_BT,
            entropy_floor=given["entropy_floor"],
        )
        finite = functools.partial(update.finite_where, tokens.mask_BT)
        checks = {
            "advantage": finite(tokens.advantage_BT),
            "old_logp": finite(stored_logp_BT),
            "logp": finite(logp_BT),
        }
        if known.sampler_logp_BT is not None:
            checks["sampler_logp"] = finite(tokens.sampler_logp_BT)
        if config.beta > 0:
            checks["ref_logp"] = finite(ref_logp_BT)
        return tokens, checks

    def floor_of_top_entropy(
        adapter: lora.Adapter, params: gemma.Params, parts: batch.Experience, temperature: jax.Array
    ) -> Float[Array, ""]:
        """Of the whole batch, by a forward pass over all its micro-batches."""
        if config.top_entropy == 1:
            return jnp.float32(-jnp.inf)
        _, entropy_BT = update.joined(_scored(model, params, adapter, parts, temperature))
        return entropy.top_share_floor(entropy_BT, update.joined(parts.rows).mask_BT, share=config.top_entropy)

    @jax.named_scope("update")
    def step(
        adapter: lora.Adapter, opt_state: Any, params: gemma.Params, known: batch.Experience, temperature: jax.Array
    ) -> Any:
        mask_BT = known.rows.mask_BT
        totals = objective.Totals(
            num_samples=jnp.maximum(known.rows.num_samples.astype(jnp.float32), 1.0),
            num_tokens=mask_BT.sum(dtype=jnp.float32),
        )
        parts = update.cut(known, micro_batches)
        floor = floor_of_top_entropy(adapter, params, parts, temperature)

        def micro_loss(adapter: lora.Adapter, micro: batch.Experience) -> Any:
            tokens, checks = tokens_of(adapter, params, micro, temperature=temperature, entropy_floor=floor)
            value, terms = loss_of(tokens, totals)
            return value, (_sums(terms, tokens, config), checks)

        value, grads, (sums, checks) = update.accumulate(micro_loss, adapter, parts)
        adapter, opt_state, metrics = update.take(
            transform,
            (adapter, opt_state),
            grads,
            value,
            useful=((jnp.asarray(known.advantage_BT) != 0) & mask_BT).any(),
            checks=jax.tree.map(jnp.all, checks),
        )
        return adapter, opt_state, {**metrics, **_means(sums)}

    return jax.jit(step, donate_argnums=(0, 1))


@jax.named_scope("score")
def _scored(
    model: gemma.Model, params: gemma.Params, adapter: lora.Adapter | None, parts: batch.Experience, temperature: Any
) -> tuple[Float[Array, "M B T"], Float[Array, "M B T"]]:
    """`completion_logprob` of every micro-batch, one after the other."""

    def score(part: batch.Experience) -> Logprobs:
        return completion_logprob(model, params, adapter, part.rows, floor_BT=part.floor_BT, temperature=temperature)

    return jax.lax.map(score, parts)


def _sums(
    terms: objective.Terms, tokens: objective.Tokens, config: objective.LossConfig
) -> dict[str, dict[str, jax.Array]]:
    """Sums and extremes over this micro-batch's tokens, to be put together by `_means`."""
    mask_BT = tokens.mask_BT
    total = lambda x: jnp.where(mask_BT, x.astype(jnp.float32), 0.0).sum()  # noqa: E731
    gap_BT = jnp.where(mask_BT, jnp.abs(tokens.logp_BT - tokens.sampler_logp_BT), 0.0)
    count_BT = loss.sample_count(tokens.sample_BT)
    share = lambda x: loss.sample_sum(x.astype(jnp.float32), tokens.sample_BT) / count_BT  # noqa: E731
    found = {
        "token": {
            "entropy": total(tokens.entropy_BT),
            "clip_ratio/low_mean": total(terms.clipped_low_BT),
            "clip_ratio/high_mean": total(terms.clipped_high_BT),
            "clip_ratio/region_mean": total(terms.clipped_low_BT | terms.clipped_high_BT),
            "sampling/sampling_logp_difference/mean": total(gap_BT),
        },
        "sum": {"tokens": mask_BT.sum(dtype=jnp.float32), "policy_loss": total(terms.weight_BT * terms.surrogate_BT)},
        "min": {"clip_ratio/low_min": jnp.where(mask_BT, share(terms.clipped_low_BT), jnp.inf).min()},
        "max": {
            "clip_ratio/high_max": share(terms.clipped_high_BT).max(),
            "sampling/sampling_logp_difference/max": gap_BT.max(),
        },
    }
    if config.beta > 0:
        found["token"]["kl"] = total(terms.kl_BT)
    if config.correction != "none":
        low, high = config.correction_low, config.correction_high
        weight_BT = correction_lib.weight(
            config.correction, tokens.old_logp_BT, tokens.sampler_logp_BT, tokens.sample_BT, low=low, high=high
        )
        name = "sampling/importance_sampling_ratio"
        found["token"][f"{name}/mean"] = total(weight_BT)
        found["min"][f"{name}/min"] = jnp.where(mask_BT, weight_BT, jnp.inf).min()
        found["max"][f"{name}/max"] = jnp.where(mask_BT, weight_BT, -jnp.inf).max()
    return found


def _means(sums: dict[str, dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Metrics of the batch from the stacked sums of its micro-batches."""
    count = sums["sum"]["tokens"].sum()
    tokens, found = jnp.maximum(count, 1.0), count > 0
    return {
        **{name: value.sum() / tokens for name, value in sums["token"].items()},
        "policy_loss": sums["sum"]["policy_loss"].sum(),
        **{name: jnp.where(found, value.min(), 0.0) for name, value in sums["min"].items()},
        **{name: jnp.where(found, value.max(), 0.0) for name, value in sums["max"].items()},
    }
