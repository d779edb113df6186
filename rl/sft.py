"""Supervised fine-tuning: cross-entropy of the completion's tokens, end-of-turn token included, prompt excluded.

    loss = sum over completion tokens of -log p(token) / number of completion tokens in the batch

`make_step` trains an adapter over a frozen base; `make_pretrain_step` trains the base itself, as the demo's once was.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from thinkfirst.models import gemma, lora
from thinkfirst.models import remat as remat_lib
from thinkfirst.rl import batch, update


def collate(rows: Sequence[tuple[list[int], list[int]]], num_tokens: int) -> batch.Sequences:
    """(prompt ids, completion ids) pairs side by side, padded to `num_tokens`; host arrays."""
    tokens_BT = np.zeros((len(rows), num_tokens), np.int32)
    for row, (prompt, completion) in zip(tokens_BT, rows, strict=True):
        ids = prompt + completion
        if len(ids) > num_tokens:
            raise ValueError(f"{len(prompt)} tokens of prompt and {len(completion)} of completion exceed {num_tokens}")
        row[: len(ids)] = ids
    return batch.Sequences(
        tokens_BT=tokens_BT,
        prompt_length_B=np.array([len(prompt) for prompt, _ in rows], np.int32),
        length_B=np.array([len(prompt) + len(completion) for prompt, completion in rows], np.int32),
    )


def completion_logprob(
    model: gemma.Model,
    params: gemma.Params,
    adapter: lora.Adapter | None,
    rows: batch.Sequences,
    *,
    remat: remat_lib.Name = "none",
) -> tuple[Float[Array, "B _"], Bool[Array, "B _"]]:
    """(log-prob of every token but the first, where it belongs to the completion)."""
    tokens_BT = jnp.asarray(rows.tokens_BT)
    num_tokens = tokens_BT.shape[1]
    valid_BT = batch.length_mask(rows.length_B, num_tokens)
    segment_BT = valid_BT.astype(jnp.int32)
    hidden_BTD = model.hidden(params, tokens_BT, segment_BT=segment_BT, adapter=adapter, remat=remat)
    logp_BT, _ = model.token_logprob(params, hidden_BTD[:, :-1], tokens_BT[:, 1:])
    return logp_BT, (valid_BT & ~batch.length_mask(rows.prompt_length_B, num_tokens))[:, 1:]


def loss(
    model: gemma.Model, params: gemma.Params, adapter: lora.Adapter | None, rows: batch.Sequences
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(mean cross-entropy, token count) over the completion tokens of the batch."""
    logp_BT, mask_BT = completion_logprob(model, params, adapter, rows)
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

    def step(adapter: lora.Adapter, opt_state: Any, params: gemma.Params, rows: batch.Sequences) -> Any:
        logprob = lambda adapter, part: completion_logprob(model, params, adapter, part, remat=remat)  # noqa: E731
        return _step(transform, logprob, (adapter, opt_state), rows, micro_batches)

    return jax.jit(step, donate_argnums=(0, 1))


def make_pretrain_step(
    model: gemma.Model, transform: optax.GradientTransformation, *, micro_batches: int = 1
) -> Callable[..., Any]:
    """step(params, opt_state, rows) -> params', opt_state', metrics; `make_step` for every weight of the base."""

    def step(params: gemma.Params, opt_state: Any, rows: batch.Sequences) -> Any:
        logprob = lambda params, part: completion_logprob(model, params, None, part)  # noqa: E731
        return _step(transform, logprob, (params, opt_state), rows, micro_batches)

    return jax.jit(step, donate_argnums=(0, 1))


def _step(
    transform: optax.GradientTransformation,
    logprob: Callable[[Any, batch.Sequences], Any],
    state: tuple[Any, Any],
    rows: batch.Sequences,
    micro_batches: int,
) -> Any:
    """The update of what `logprob` takes first, from the cross-entropy of the whole batch."""
    num_tokens = rows.tokens_BT.shape[1]
    begin_B = jnp.maximum(jnp.asarray(rows.prompt_length_B), 1)  # nothing predicts the first token
    count = jnp.maximum(jnp.minimum(jnp.asarray(rows.length_B), num_tokens) - begin_B, 0).sum().astype(jnp.float32)

    def micro_loss(trained: Any, part: batch.Sequences) -> Any:
        logp_BT, mask_BT = logprob(trained, part)
        value = -jnp.where(mask_BT, logp_BT, 0.0).sum() / jnp.maximum(count, 1.0)
        return value, {"logp": update.finite_where(mask_BT, logp_BT)}

    value, grads, checks = update.accumulate(micro_loss, state[0], update.cut(rows, micro_batches))
    *after, metrics = update.take(
        transform, state, grads, value, useful=count > 0, checks=jax.tree.map(jnp.all, checks)
    )
    return *after, {**metrics, "completion_tokens": count}
