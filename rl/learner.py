"""The GRPO train step: policy and reference log-probs of an Experience, loss, gradient of the adapter, optimiser."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from thinkfirst.models import gemma, lora
from thinkfirst.rl import batch, entropy, objective, optimizer

Logprobs = tuple[Float[Array, "B T"], Float[Array, "B T"]]


def completion_logprob(
    model: gemma.Model,
    params: gemma.Params,
    adapter: lora.Adapter | None,
    rows: batch.Experience,
    *,
    temperature: Float[Array, ""],
    remat: bool = False,
) -> Logprobs:
    """(log-prob, entropy) of every completion token, [B, C], under the distribution the engine sampled from."""
    num_tokens, width = rows.tokens_BT.shape[1], rows.completion_BT.shape[1]
    valid_BT = batch.length_mask(rows.prompt_length_B + rows.completion_length_B, num_tokens)
    hidden_BTD = model.hidden(
        params, jnp.asarray(rows.tokens_BT), segment_BT=valid_BT.astype(jnp.int32), adapter=adapter, remat=remat
    )
    before_BT = jnp.minimum(rows.prompt_length_B[:, None] - 1 + jnp.arange(width), num_tokens - 1)
    return model.token_logprob(
        params,
        jnp.take_along_axis(hidden_BTD, before_BT[:, :, None], axis=1),
        jnp.asarray(rows.completion_BT),
        floor_BT=jnp.asarray(rows.floor_BT),
        temperature=temperature,
    )


def make_step(
    model: gemma.Model,
    transform: optax.GradientTransformation,
    config: objective.LossConfig,
    *,
    micro_batches: int,
    remat: bool,
) -> Callable[..., Any]:
    """step(adapter, opt_state, params, experience, temperature) -> adapter', opt_state', metrics.

    The reference policy is `params` with the adapter off.  Rows are cut into `micro_batches` parts whose losses and
    gradients add up to the batch's.  Without any non-zero advantage, or with a gradient that is not finite, nothing is
    updated (metric `skipped`).  adapter and opt_state are donated.
    """

    loss_of = objective.make(config)

    def micro_loss(
        adapter: lora.Adapter,
        params: gemma.Params,
        rows: batch.Experience,
        totals: objective.Totals,
        entropy_floor: jax.Array,
        *,
        temperature: jax.Array,
    ) -> Any:
        logp_BT, entropy_BT = completion_logprob(model, params, adapter, rows, temperature=temperature, remat=remat)
        ref_logp_BT, _ = completion_logprob(model, params, None, rows, temperature=temperature)
        sampler_logp_BT = jnp.asarray(rows.old_logp_BT)
        corrected = config.correction != "none"
        tokens = objective.Tokens(
            logp_BT=logp_BT,
            entropy_BT=entropy_BT,
            # Corrected for the sampler, the policy before the update is the learner's own: the one being updated.
            old_logp_BT=jax.lax.stop_gradient(logp_BT) if corrected else sampler_logp_BT,
            sampler_logp_BT=sampler_logp_BT,
            ref_logp_BT=ref_logp_BT,
            advantage_B=jnp.asarray(rows.advantage_B),
            mask_BT=batch.length_mask(rows.completion_length_B, rows.completion_BT.shape[1]),
            entropy_floor=entropy_floor,
        )
        value, terms = loss_of(tokens, totals)
        return value, _sums(terms, tokens)

    def floor_of_top_entropy(
        adapter: lora.Adapter, params: gemma.Params, rows: batch.Experience, temperature: jax.Array
    ) -> Float[Array, ""]:
        """Of the whole batch, by a forward pass over all its micro-batches."""
        if config.top_entropy == 1:
            return jnp.float32(-jnp.inf)
        parts = _cut(rows, micro_batches)
        _, entropies = jax.lax.map(
            lambda part: completion_logprob(model, params, adapter, part, temperature=temperature), parts
        )
        width = rows.completion_BT.shape[1]
        lengths = parts.completion_length_B.reshape(-1)
        return entropy.top_share_floor(
            entropies.reshape(-1, width), batch.length_mask(lengths, width), share=config.top_entropy
        )

    def step(
        adapter: lora.Adapter, opt_state: Any, params: gemma.Params, rows: batch.Experience, temperature: jax.Array
    ) -> Any:
        totals = objective.Totals(
            num_rows=rows.tokens_BT.shape[0], num_tokens=jnp.asarray(rows.completion_length_B).sum().astype(jnp.float32)
        )
        floor = floor_of_top_entropy(adapter, params, rows, temperature)

        def accumulate(total: Any, micro: batch.Experience) -> tuple[Any, Any]:
            (value, sums), grads = jax.value_and_grad(micro_loss, has_aux=True)(
                adapter, params, micro, totals, floor, temperature=temperature
            )
            return jax.tree.map(jnp.add, total, (grads, value)), sums

        zeros = (jax.tree.map(jnp.zeros_like, adapter), jnp.float32(0.0))
        with jax.named_scope("update"):
            (grads, value), sums = jax.lax.scan(accumulate, zeros, _cut(rows, micro_batches))
            norm = optax.tree.norm(grads)
            usable = jnp.isfinite(norm) & jnp.isfinite(value) & (rows.advantage_B != 0).any()
            proposal = optimizer.apply(transform, grads, opt_state, adapter)
            keep = lambda new, old: jnp.where(usable, new, old)  # noqa: E731
            adapter, opt_state = jax.tree.map(keep, proposal, (adapter, opt_state))
        metrics = {"loss": value, "grad_norm": norm, "skipped": 1.0 - usable.astype(jnp.float32), **_means(sums)}
        return adapter, opt_state, metrics

    return jax.jit(step, donate_argnums=(0, 1))


def _cut(rows: batch.Experience, micro_batches: int) -> batch.Experience:
    """[B, ...] -> [M, B / M, ...]; each part takes every M-th row, so that every mesh shard has work in every part."""

    def cut(x: jax.Array) -> jax.Array:
        if x.shape[0] % micro_batches:
            raise ValueError(f"{x.shape[0]} rows cannot be cut into {micro_batches} micro-batches")
        return x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, rows)


def _sums(terms: objective.Terms, tokens: objective.Tokens) -> dict[str, dict[str, jax.Array]]:
    """Sums and maxima over this micro-batch's tokens, to be put together by `_means`."""
    mask_BT = tokens.mask_BT
    total = lambda x: jnp.where(mask_BT, x.astype(jnp.float32), 0.0).sum()  # noqa: E731
    gap_BT = jnp.where(mask_BT, jnp.abs(tokens.logp_BT - tokens.sampler_logp_BT), 0.0)
    count_B = jnp.maximum(mask_BT.sum(axis=1, dtype=jnp.float32), 1.0)
    row_share = lambda x: (x & mask_BT).sum(axis=1, dtype=jnp.float32) / count_B  # noqa: E731
    return {
        "token": {
            "kl": total(terms.kl_BT),
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


def _means(sums: dict[str, dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Metrics of the batch from the stacked sums of its micro-batches."""
    tokens = jnp.maximum(sums["sum"]["tokens"].sum(), 1.0)
    return {
        **{name: value.sum() / tokens for name, value in sums["token"].items()},
        "policy_loss": sums["sum"]["policy_loss"].sum(),
        **{name: value.min() for name, value in sums["min"].items()},
        **{name: value.max() for name, value in sums["max"].items()},
    }
