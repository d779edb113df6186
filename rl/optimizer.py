"""AdamW with a clipped global norm and a warm-up/decay schedule, from optax."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of one stage's optimiser; `warmup` and the decay are fractions of the stage's steps."""

    learning_rate: float
    warmup: float = 0.1
    decay: Literal["constant", "cosine"] = "constant"
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 1.0


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate at optimiser step 0, 1, ...: linear warm-up, then flat or a cosine to zero."""
    warmup = max(1, round(config.warmup * steps))
    rise = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, warmup - 1 or 1)
    if config.decay == "cosine":
        fall = optax.cosine_decay_schedule(config.learning_rate, max(1, steps - warmup))
    else:
        fall = optax.constant_schedule(config.learning_rate)
    return optax.join_schedules([rise, fall], [warmup])


def rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    """The schedule's values on the host, for the log."""
    with jax.numpy_dtype_promotion("standard"):  # as in `apply`
        return np.asarray(jax.vmap(schedule(config, steps))(jnp.arange(steps)))


def apply(transform: optax.GradientTransformation, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """(parameters after one step, optimiser state after it); optax counts on the usual dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state


def make(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; moments take the dtype of what they follow (float32 for adapters)."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule(config, steps), b1=config.b1, b2=config.b2, weight_decay=config.weight_decay),
    )
