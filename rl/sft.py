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
from jaxtyping import Array, Float

from thinkfirst.models import gemma, lora
from thinkfirst.rl import batch, optimizer


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


def loss(
    model: gemma.Model, params: gemma.Params, adapter: lora.Adapter | None, rows: batch.Sequences
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(mean cross-entropy, token count) over the completion tokens of the batch."""
    tokens_BT = jnp.asarray(rows.tokens_BT)
    num_tokens = tokens_BT.shape[1]
    valid_BT = batch.length_mask(rows.length_B, num_tokens)
    hidden_BTD = model.hidden(params, tokens_BT, segment_BT=valid_BT.astype(jnp.int32), adapter=adapter)
    logp_BT, _ = model.token_logprob(params, hidden_BTD[:, :-1], tokens_BT[:, 1:])
    mask_BT = (valid_BT & ~batch.length_mask(rows.prompt_length_B, num_tokens))[:, 1:]
    count = mask_BT.sum(dtype=jnp.float32)
    return -jnp.where(mask_BT, logp_BT, 0.0).sum() / jnp.maximum(count, 1.0), count


def make_step(model: gemma.Model, transform: optax.GradientTransformation) -> Callable[..., Any]:
    """step(adapter, opt_state, params, rows) -> adapter', opt_state', metrics; the first two are donated."""

    def step(adapter: lora.Adapter, opt_state: Any, params: gemma.Params, rows: batch.Sequences) -> Any:
        (value, count), grads = jax.value_and_grad(lambda a: loss(model, params, a, rows), has_aux=True)(adapter)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), "completion_tokens": count}
        return *optimizer.apply(transform, grads, opt_state, adapter), metrics

    return jax.jit(step, donate_argnums=(0, 1))


def make_pretrain_step(model: gemma.Model, transform: optax.GradientTransformation) -> Callable[..., Any]:
    """step(params, opt_state, rows) -> params', opt_state', metrics; trains every weight, donates the first two."""

    def step(params: gemma.Params, opt_state: Any, rows: batch.Sequences) -> Any:
        (value, count), grads = jax.value_and_grad(lambda p: loss(model, p, None, rows), has_aux=True)(params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), "completion_tokens": count}
        return *optimizer.apply(transform, grads, opt_state, params), metrics

    return jax.jit(step, donate_argnums=(0, 1))
