"""One optimiser update from the gradients of micro-batches, made as a whole or not at all: the end of every train step.

Parameters, moments and counters stay as they were when the rows say nothing (`useful` is False) or when the loss, the
gradient, what the caller checked, or what the optimiser made of it is not finite.  `optax.apply_if_finite` is no
substitute: once its limit of bad steps is passed it applies the bad one.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from thinkfirst.rl import guard, optimizer

T = TypeVar("T")
Checks = dict[str, Bool[Array, ""]]  # name of a tensor -> whether it is finite


def cut(rows: T, micro_batches: int) -> T:
    """[B, ...] -> [M, B / M, ...]; each part takes every M-th row, so that every mesh shard has work in every part."""

    def part(x: jax.Array) -> jax.Array:
        if x.shape[0] % micro_batches:
            raise ValueError(f"{x.shape[0]} rows cannot be cut into {micro_batches} micro-batches")
        return x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(part, rows)


def joined(parts: T) -> T:
    """[M, B / M, ...] -> [B, ...]: the rows in the order they had before `cut`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:]), parts)


def accumulate(micro_loss: Callable[[Any, Any], Any], trained: T, parts: Any) -> tuple[Float[Array, ""], T, Any]:
    """(loss, its gradient, what else `micro_loss` returned, stacked), the first two summed over the micro-batches."""

    def add(total: Any, micro: Any) -> tuple[Any, Any]:
        (value, other), grads = jax.value_and_grad(micro_loss, has_aux=True)(trained, micro)
        return jax.tree.map(jnp.add, total, (grads, value)), other

    zeros = (jax.tree.map(jnp.zeros_like, trained), jnp.float32(0.0))
    (grads, value), other = jax.lax.scan(add, zeros, parts)
    return value, grads, other


def take(
    transform: optax.GradientTransformation,
    state: tuple[T, Any],
    grads: T,
    value: Float[Array, ""],
    *,
    useful: Bool[Array, ""],
    checks: Checks,
) -> tuple[T, Any, dict[str, Any]]:
    """(parameters, optimiser state, metrics) after the update, or unchanged.

    Metric `skipped` is 1 where nothing was changed, and one of `skipped/no_signal` and `skipped/not_finite` tells why;
    the metrics `finite/...` are for `guard.split`.
    """
    trained, opt_state = state
    norm = optax.tree.norm(grads)
    proposal = optimizer.apply(transform, grads, opt_state, trained)
    update = jnp.stack(list(guard.finite_leaves("", proposal).values())).all()
    finite = {**checks, "loss": jnp.isfinite(value), **guard.finite_leaves("gradient", grads)}
    finite |= {"gradient_norm": jnp.isfinite(norm), "update": update}
    sound = jnp.stack(list(finite.values())).all()
    usable = sound & useful
    trained, opt_state = jax.tree.map(lambda new, old: jnp.where(usable, new, old), proposal, state)
    metrics = {
        "loss": value,
        "grad_norm": norm,
        "skipped": 1.0 - usable.astype(jnp.float32),
        "skipped/no_signal": (sound & ~useful).astype(jnp.float32),
        "skipped/not_finite": 1.0 - sound.astype(jnp.float32),
        **{guard.FINITE + name: fine for name, fine in finite.items()},
    }
    return trained, opt_state, metrics


def finite_where(mask: Bool[Array, "..."], value: Float[Array, "..."]) -> Bool[Array, ""]:
    """Whether a value is finite wherever the mask is True."""
    return (jnp.isfinite(value) | ~mask).all()
