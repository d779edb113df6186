"""The GRPO train step: policy and reference log-probs of an Experience, loss, gradient of the adapter, optimiser."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from thinkfirst.models import gemma, lora
from thinkfirst.models import remat as remat_lib
from thinkfirst.rl import batch, entropy, objective, update
from thinkfirst.rl import correction as correction_lib

Logprobs = tuple[Float[Array, "B T"], Float[Array, "B T"]]


def completion_logprob(
    model: gemma.Model,
    params: gemma.Params,
    adapter: lora.Adapter | None,
    rows: batch.Experience,
    *,
    temperature: Float[Array, ""],
    remat: remat_lib.Name = "none",
    entropy_gradient: bool = False,
) -> Logprobs:
    """(log-prob, entropy) of every completion token, [B, C], under the distribution the engine sampled from."""
    num_tokens, width = rows.tokens_BT.shape[1], rows.completion_BT.shape[1]
    valid_BT = batch.length_mask(rows.prompt_length_B + rows.completion_length_B, num_tokens)
    hidden_BTD = model.hidden(
        params, jnp.asarray(rows.tokens_BT), segment_BT=valid_BT.astype(jnp.int32), adapter=adapter, remat=remat
    )
    before_BT = jnp.clip(rows.prompt_length_B[:, None] - 1 + jnp.arange(width), 0, num_tokens - 1)
    return model.token_logprob(
        params,
        jnp.take_along_axis(hidden_BTD, before_BT[:, :, None], axis=1),
        jnp.asarray(rows.completion_BT),
        floor_BT=None if rows.floor_BT is None else jnp.asarray(rows.floor_BT),
        temperature=temperature,
        entropy_gradient=entropy_gradient,
    )


def make_scorer(model: gemma.Model, *, micro_batches: int) -> Callable[..., Float[Array, "B T"]]:
    """score(adapter, params, experience, temperature) -> log-prob of every completion token under that policy."""

    def score(
        adapter: lora.Adapter | None, params: gemma.Params, rows: batch.Experience, temperature: jax.Array
    ) -> Float[Array, "B T"]:
        parts = update.cut(rows, micro_batches)
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
    logprob = functools.partial(completion_logprob, model)

    def tokens_of(adapter: lora.Adapter, params: gemma.Params, rows: batch.Experience, **given: Any) -> Any:
        """(objective.Tokens, what is to be finite) of a micro-batch."""
        temperature, entropy_floor = given["temperature"], given["entropy_floor"]
        logp_BT, entropy_BT = logprob(
            params, adapter, rows, temperature=temperature, remat=remat, entropy_gradient=config.entropy_bonus > 0
        )
        ref_logp_BT = jax.lax.stop_gradient(logp_BT)
        if config.beta > 0:
            ref_logp_BT, _ = logprob(params, None, rows, temperature=temperature, remat=remat)
        stored_logp_BT = jnp.asarray(rows.old_logp_BT)
        own = config.correction != "none" and rows.sampler_logp_BT is None
        tokens = objective.Tokens(
            logp_BT=logp_BT,
            entropy_BT=entropy_BT,
            old_logp_BT=jax.lax.stop_gradient(logp_BT) if own else stored_logp_BT,
            sampler_logp_BT=stored_logp_BT if rows.sampler_logp_BT is None else jnp.asarray(rows.sampler_logp_BT),
            ref_logp_BT=ref_logp_BT,
            advantage_B=jnp.asarray(rows.advantage_B),
            mask_BT=batch.length_mask(rows.completion_length_B, rows.completion_BT.shape[1]),
            entropy_floor=entropy_floor,
        )
        finite = functools.partial(update.finite_where, tokens.mask_BT)
        checks = {
            "advantage": jnp.isfinite(tokens.advantage_B).all(),
            "old_logp": finite(stored_logp_BT),
            "logp": finite(logp_BT),
        }
        if rows.sampler_logp_BT is not None:
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
        lengths_B = update.joined(parts.completion_length_B)
        return entropy.top_share_floor(
            entropy_BT, batch.length_mask(lengths_B, entropy_BT.shape[1]), share=config.top_entropy
        )

    def step(
        adapter: lora.Adapter, opt_state: Any, params: gemma.Params, rows: batch.Experience, temperature: jax.Array
    ) -> Any:
        length_B = jnp.asarray(rows.completion_length_B)
        totals = objective.Totals(
            num_rows=jnp.maximum((jnp.asarray(rows.prompt_length_B) > 0).sum(dtype=jnp.float32), 1.0),
            num_tokens=length_B.sum().astype(jnp.float32),
        )
        parts = update.cut(rows, micro_batches)
        floor = floor_of_top_entropy(adapter, params, parts, temperature)

        def micro_loss(adapter: lora.Adapter, micro: batch.Experience) -> Any:
            tokens, checks = tokens_of(adapter, params, micro, temperature=temperature, entropy_floor=floor)
            value, terms = loss_of(tokens, totals)
            return value, (_sums(terms, tokens, config), checks)

        with jax.named_scope("update"):
            value, grads, (sums, checks) = update.accumulate(micro_loss, adapter, parts)
            adapter, opt_state, metrics = update.take(
                transform,
                (adapter, opt_state),
                grads,
                value,
                useful=((jnp.asarray(rows.advantage_B) != 0) & (length_B > 0)).any(),
                checks=jax.tree.map(jnp.all, checks),
            )
        return adapter, opt_state, {**metrics, **_means(sums)}

    return jax.jit(step, donate_argnums=(0, 1))


def _scored(
    model: gemma.Model, params: gemma.Params, adapter: lora.Adapter | None, parts: batch.Experience, temperature: Any
) -> tuple[Float[Array, "M B T"], Float[Array, "M B T"]]:
    """`completion_logprob` of every micro-batch, one after the other."""
    return jax.lax.map(lambda part: completion_logprob(model, params, adapter, part, temperature=temperature), parts)


def _sums(
    terms: objective.Terms, tokens: objective.Tokens, config: objective.LossConfig
) -> dict[str, dict[str, jax.Array]]:
    """Sums and extremes over this micro-batch's tokens, to be put together by `_means`."""
    mask_BT = tokens.mask_BT
    total = lambda x: jnp.where(mask_BT, x.astype(jnp.float32), 0.0).sum()  # noqa: E731
    gap_BT = jnp.where(mask_BT, jnp.abs(tokens.logp_BT - tokens.sampler_logp_BT), 0.0)
    count_B = jnp.maximum(mask_BT.sum(axis=1, dtype=jnp.float32), 1.0)
    row_share = lambda x: (x & mask_BT).sum(axis=1, dtype=jnp.float32) / count_B  # noqa: E731
    found = {
        "token": {
            "entropy": total(tokens.entropy_BT),
            "clip_ratio/low_mean": total(terms.clipped_low_BT),
            "clip_ratio/high_mean": total(terms.clipped_high_BT),
            "clip_ratio/region_mean": total(terms.clipped_low_BT | terms.clipped_high_BT),
            "sampling/sampling_logp_difference/mean": total(gap_BT),
        },
        "sum": {"tokens": mask_BT.sum(dtype=jnp.float32), "policy_loss": total(terms.weight_BT * terms.surrogate_BT)},
        "min": {"clip_ratio/low_min": row_share(terms.clipped_low_BT).min()},
        "max": {
            "clip_ratio/high_max": row_share(terms.clipped_high_BT).max(),
            "sampling/sampling_logp_difference/max": gap_BT.max(),
        },
    }
    if config.beta > 0:
        found["token"]["kl"] = total(terms.kl_BT)
    if config.correction != "none":
        low, high = config.correction_low, config.correction_high
        weight_BT = correction_lib.weight(
            config.correction, tokens.old_logp_BT, tokens.sampler_logp_BT, mask_BT, low=low, high=high
        )
        name = "sampling/importance_sampling_ratio"
        found["token"][f"{name}/mean"] = total(weight_BT)
        found["min"][f"{name}/min"] = jnp.where(mask_BT, weight_BT, jnp.inf).min()
        found["max"][f"{name}/max"] = jnp.where(mask_BT, weight_BT, -jnp.inf).max()
    return found


def _means(sums: dict[str, dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Metrics of the batch from the stacked sums of its micro-batches."""
    tokens = jnp.maximum(sums["sum"]["tokens"].sum(), 1.0)
    return {
        **{name: value.sum() / tokens for name, value in sums["token"].items()},
        "policy_loss": sums["sum"]["policy_loss"].sum(),
        **{name: value.min() for name, value in sums["min"].items()},
        **{name: value.max() for name, value in sums["max"].items()},
    }
