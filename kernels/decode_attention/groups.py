"""Which rows share a prompt: rows ordered by their prompt, found by one small sort before the kernel."""

import jax.numpy as jnp
from jaxtyping import Array, Int


def looked_at(group_B: Int[Array, "B"], position_B: Int[Array, "B"], prompts: int, window: int) -> Int[Array, "B"]:
    """The prompt that each row looks at; `prompts`, which is none, for an idle row and one whose window has left it."""
    gone_B = position_B < 0
    if window:
        gone_B |= position_B >= window - 1
    return jnp.where(gone_B, prompts, jnp.clip(group_B, 0, prompts - 1))


def runs(group_B: Int[Array, "B"], prompts: int) -> tuple[Int[Array, "B"], Int[Array, "_"]]:
    """Rows in the order of their prompts, and where in that order the rows of each prompt begin, and the last end."""
    order_B = jnp.argsort(group_B, stable=True).astype(jnp.int32)
    first = jnp.sum(group_B[:, None] < jnp.arange(prompts + 1), axis=0, dtype=jnp.int32)
    return order_B, first
