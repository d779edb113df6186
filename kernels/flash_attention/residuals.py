"""Names of what attention keeps for its gradient beside its operands: a caller's remat policy may save them by name.

Saved, the forward kernel is not run a second time; not saved, it is, as any other operation of the layer.
"""

import jax
from jax import ad_checkpoint

CONTEXT, LOG_SUM = NAMES = ("attention_context", "attention_log_sum")


def context(x: jax.Array) -> jax.Array:
    """A context whose gradient needs no log-sum, under its name."""
    return ad_checkpoint.checkpoint_name(x, CONTEXT)


def named(context: jax.Array, log_sum: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both under their names."""
    return ad_checkpoint.checkpoint_name(context, CONTEXT), ad_checkpoint.checkpoint_name(log_sum, LOG_SUM)
