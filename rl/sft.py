"""Supervised fine-tuning: cross-entropy of the completion's tokens, end-of-turn token included, prompt excluded.

    loss = sum over completion tokens of -log p(token) / number of completion tokens in the batch

`make_step` trains an adapter over a frozen base; `make_pretrain_step` trains the base itself, as the demo's once was.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from thinkfirst.models import gemma, lora
from thinkfirst.models import remat as remat_lib
from thinkfirst.rl import batch, learner, update


def loss(
    model: gemma.Model, params: gemma.Params, adapter: lora.Adapter | None, rows: batch.Rows
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(mean cross-entropy, token count) over the completion tokens of the batch."""
    mask_BT = rows.mask_BT
    logp_BT, _ = learner.completion_logprob(model, params, adapter, rows)
    count = mask_BT.sum(dtype=jnp.float32)
    return -jnp.where(mask_BT, logp_BT, 0.0).sum() / jnp.maximum(count, 1.0), count


def make_step(
    model: gemma.Model,
    transform: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    remat: remat_lib.Name = "none",
) -> Callable[..., Any]:
    """step(adapter, opt_state, params, rows) -> adapter', opt_state', metrics; the first two are donated.

    Rows are cut into `micro_batches` parts, whose losses and gradients add up to the batch's.  Without a completion
    token, or with anything that is not finite, nothing is updated (`update.take`).
    """

    def step(adapter: lora.Adapter, opt_state: Any, params: gemma.Params, rows: batch.Rows) -> Any:
        logprob = lambda adapter, part: learner.completion_logprob(model, params, adapter, part, remat=remat)[0]  # noqa: E731
        return _step(transform, logprob, (adapter, opt_state), rows, micro_batches)

    return jax.jit(step, donate_argnums=(0, 1))


def make_pretrain_step(
    model: gemma.Model, transform: optax.GradientTransformation, *, micro_batches: int = 1
) -> Callable[..., Any]:
    """step(params, opt_state, rows) -> params', opt_state', metrics; `make_step` for every weight of the base."""

    def step(params: gemma.Params, opt_state: Any, rows: batch.Rows) -> Any:
        logprob = lambda params, part: learner.completion_logprob(model, params, None, part)[0]  # noqa: E731
        return _step(transform, logprob, (params, opt_state), rows, micro_batches)

    return jax.jit(step, donate_argnums=(0, 1))


@jax.named_scope("update")
def _step(
    transform: optax.GradientTransformation,
    logprob: Callable[[Any, batch.Rows], jax.Array],
    state: tuple[Any, Any],
    rows: batch.Rows,
    micro_batches: int,
) -> Any:
    """The update of what `logprob` takes first, from the cross-entropy of the whole batch."""
    count = rows.mask_BT.sum(dtype=jnp.float32)

    def micro_loss(trained: Any, part: batch.Rows) -> Any:
        mask_BT, logp_BT = part.mask_BT, logprob(trained, part)
        value = -jnp.where(mask_BT, logp_BT, 0.0).sum() / jnp.maximum(count, 1.0)
        return value, {"logp": update.finite_where(mask_BT, logp_BT)}

    value, grads, checks = update.accumulate(micro_loss, state[0], update.cut(rows, micro_batches))
    *after, metrics = update.take(
        transform, state, grads, value, useful=count > 0, checks=jax.tree.map(jnp.all, checks)
    )
    return *after, {**metrics, "completion_tokens": count}
