"""The GRPO train step: policy and reference log-probs of an Experience, loss, gradient of the adapter, optimiser."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from thinkfirst.models import gemma, lora
from thinkfirst.rl import batch, loss, optimizer

Logprobs = tuple[Float[Array, "B T"], Float[Array, "B T"]]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Strength of the KL term and the trust region."""

    beta: float = 0.03
    clip_low: float = 0.2
    clip_high: float = 0.2


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
    config: LossConfig,
    *,
    micro_batches: int,
    remat: bool,
) -> Callable[..., Any]:
    """step(adapter, opt_state, params, experience, temperature) -> adapter', opt_state', metrics.

    The reference policy is `params` with the adapter off.  Rows are cut into `micro_batches` parts whose losses and
    gradients add up to the batch's.  Without any non-zero advantage, or with a gradient that is not finite, nothing is
    updated (metric `skipped`).  adapter and opt_state are donated.
    """

    def micro_loss(
        adapter: lora.Adapter, params: gemma.Params, rows: batch.Experience, num_rows: int, temperature: jax.Array
    ) -> Any:
        logp_BT, entropy_BT = completion_logprob(model, params, adapter, rows, temperature=temperature, remat=remat)
        ref_logp_BT, _ = completion_logprob(model, params, None, rows, temperature=temperature)
        mask_BT = batch.length_mask(rows.completion_length_B, rows.completion_BT.shape[1])
        value, terms = loss.grpo(
            logp_BT,
            jnp.asarray(rows.old_logp_BT),
            jax.lax.stop_gradient(ref_logp_BT),
            jnp.asarray(rows.advantage_B),
            mask_BT,
            num_rows=num_rows,
            beta=config.beta,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
        )
        return value, _sums(terms, mask_BT, logp_BT, entropy_BT, old_logp_BT=rows.old_logp_BT, num_rows=num_rows)

    def step(
        adapter: lora.Adapter, opt_state: Any, params: gemma.Params, rows: batch.Experience, temperature: jax.Array
    ) -> Any:
        num_rows = rows.tokens_BT.shape[0]

        def accumulate(total: Any, micro: batch.Experience) -> tuple[Any, Any]:
            (value, sums), grads = jax.value_and_grad(micro_loss, has_aux=True)(
                adapter, params, micro, num_rows, temperature
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


def _sums(
    terms: loss.Terms, mask_BT: Any, logp_BT: Any, entropy_BT: Any, *, old_logp_BT: Any, num_rows: int
) -> dict[str, dict[str, jax.Array]]:
    """Sums and maxima over this micro-batch's tokens, to be put together by `_means`."""
    total = lambda x: jnp.where(mask_BT, x.astype(jnp.float32), 0.0).sum()  # noqa: E731
    gap_BT = jnp.where(mask_BT, jnp.abs(logp_BT - old_logp_BT), 0.0)
    weight_BT = loss.sequence_mean_weight(mask_BT, num_rows)
    count_B = jnp.maximum(mask_BT.sum(axis=1, dtype=jnp.float32), 1.0)
    row_share = lambda x: (x & mask_BT).sum(axis=1, dtype=jnp.float32) / count_B  # noqa: E731
    return {
        "token": {
            "kl": total(terms.kl_BT),
            "entropy": total(entropy_BT),
            "clip_ratio/low_mean": total(terms.clipped_low_BT),
            "clip_ratio/high_mean": total(terms.clipped_high_BT),
            "clip_ratio/region_mean": total(terms.clipped_low_BT | terms.clipped_high_BT),
            "sampling/sampling_logp_difference/mean": total(gap_BT),
        },
        "sum": {"tokens": mask_BT.sum(dtype=jnp.float32), "policy_loss": total(weight_BT * terms.surrogate_BT)},
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
