"""Direct preference optimisation: no rewards and no samples, only pairs of which one was preferred.

    margin = beta ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))        log-probs of sequences
    loss   = mean over pairs of -log sigmoid(margin)

arXiv 2305.18290, equation 7.  Log-probs of sequences are sums over the completion's tokens, not means.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@flax.struct.dataclass
class Pairs:
    """Log-probs of the preferred and of the other completion of each pair; P counts pairs."""

    chosen_P: Float[Array, "P"]
    rejected_P: Float[Array, "P"]


def sequence_logp(logp_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"]) -> Float[Array, "B"]:
    """The log-prob of each whole completion."""
    return jnp.where(mask_BT, logp_BT, 0.0).sum(axis=1)


def loss(
    policy: Pairs, reference: Pairs, *, beta: float, num_pairs: int | Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, "P"]]:
    """(this micro-batch's share of the loss of a batch of `num_pairs` pairs, margins: positive where ranked right)."""
    gain_P = (policy.chosen_P - reference.chosen_P) - (policy.rejected_P - reference.rejected_P)
    margin_P = beta * gain_P
    return -jax.nn.log_sigmoid(margin_P).sum() / num_pairs, margin_P
