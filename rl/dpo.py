"""Direct preference optimisation: no rewards and no samples, only pairs of which one was preferred.

    margin = beta ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))        log-probs of sequences
    loss   = mean over pairs of -log sigmoid(margin)

arXiv 2305.18290, equation 7.  Log-probs of sequences are sums over the completion's tokens, not means.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from thinkfirst.models import gemma, lora
from thinkfirst.rl import batch, learner, update


@flax.struct.dataclass
class Pairs:
    """Log-probs of the preferred and of the other completion of each pair; P counts pairs."""

    chosen_P: Float[Array, "P"]
    rejected_P: Float[Array, "P"]


@flax.struct.dataclass
class Rows:
    """The preferred and the other completion of each pair after their prompt, one in a row of either."""

    chosen: batch.Rows
    rejected: batch.Rows


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


def make_step(
    model: gemma.Model, transform: optax.GradientTransformation, *, beta: float, micro_batches: int = 1
) -> Callable[..., Any]:
    """step(adapter, opt_state, params, rows) -> adapter', opt_state', metrics; the first two are donated.

    The reference policy is `params` with the adapter off.  Pairs are cut into `micro_batches` parts whose losses and
    gradients add up to the batch's; with anything that is not finite nothing is updated (`update.take`).
    """

    def logp_of(params: gemma.Params, adapter: lora.Adapter | None, rows: Rows) -> Pairs:
        chosen, rejected = (
            sequence_logp(learner.completion_logprob(model, params, adapter, part)[0], part.mask_BT)
            for part in (rows.chosen, rows.rejected)
        )
        return Pairs(chosen, rejected)

    @jax.named_scope("update")
    def step(adapter: lora.Adapter, opt_state: Any, params: gemma.Params, rows: Rows) -> Any:
        num_pairs = rows.chosen.tokens_BT.shape[0]

        def micro_loss(adapter: lora.Adapter, part: Rows) -> Any:
            policy, reference = logp_of(params, adapter, part), logp_of(params, None, part)
            value, margin_P = loss(policy, reference, beta=beta, num_pairs=num_pairs)
            return value, (margin_P, {"logp": _finite(policy), "ref_logp": _finite(reference)})

        value, grads, (margin_MP, checks) = update.accumulate(micro_loss, adapter, update.cut(rows, micro_batches))
        *after, metrics = update.take(
            transform,
            (adapter, opt_state),
            grads,
            value,
            useful=rows.chosen.num_samples > 0,
            checks=jax.tree.map(jnp.all, checks),
        )
        return *after, {
            **metrics,
            "margin": margin_MP.mean(),
            "ranked_right": (margin_MP > 0).astype(jnp.float32).mean(),
        }

    return jax.jit(step, donate_argnums=(0, 1))


def _finite(pairs: Pairs) -> Bool[Array, ""]:
    return jnp.isfinite(pairs.chosen_P).all() & jnp.isfinite(pairs.rejected_P).all()
