"""Log-probability and entropy of given tokens from hidden states, a chunk of tokens at a time.

    logit = cap(hidden . table) / temperature,   logp_full = log_softmax(logit)
    kept  = logp_full >= floor                   (what top-k/top-p left when the token was drawn)
    logp  = logit[token] - logsumexp(logit over kept),   entropy = -sum over kept of p log p

Only [chunk, V] logits exist at a time, in the forward and (by rematerialisation) in the backward pass.  float32.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NO_FLOOR = -jnp.inf


def logits(hidden_TD: Float[Array, "T D"], table_VD: Float[Array, "V D"], soft_cap: float) -> Float[Array, "T V"]:
    """Float32 logits of a few tokens, from products in the dtype of the hidden states; `soft_cap` 0 caps nothing."""
    table_VD = table_VD.astype(hidden_TD.dtype)
    logit_TV = jnp.einsum("TD,VD->TV", hidden_TD, table_VD, preferred_element_type=jnp.float32)
    return soft_cap * jnp.tanh(logit_TV / soft_cap) if soft_cap else logit_TV


def _chunk_logprob(
    hidden_TD: Float[Array, "T D"],
    token_T: Int[Array, "T"],
    floor_T: Float[Array, "T"],
    *,
    table_VD: Float[Array, "V D"],
    temperature: Float[Array, ""],
    soft_cap: float,
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
    logit_TV = logits(hidden_TD, table_VD, soft_cap) / temperature
    token_logit_T = jnp.take_along_axis(logit_TV, token_T[:, None], axis=1)[:, 0]
    floor_TV = (floor_T + jax.lax.stop_gradient(jax.nn.logsumexp(logit_TV, axis=1)))[:, None]
    kept_TV = logit_TV >= floor_TV
    lse_T = jax.nn.logsumexp(logit_TV, axis=1, where=kept_TV)
    logp_TV = jnp.where(kept_TV, logit_TV - lse_T[:, None], 0.0)
    entropy_T = -jnp.where(kept_TV, jnp.exp(logp_TV) * logp_TV, 0.0).sum(axis=1)
    return token_logit_T - lse_T, entropy_T


def token_logprob(
    hidden_TD: Float[Array, "T D"],
    table_VD: Float[Array, "V D"],
    token_T: Int[Array, "T"],
    floor_T: Float[Array, "T"],
    *,
    temperature: Float[Array, ""],
    soft_cap: float,
    chunk: int,
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
    """(log-prob, entropy) of each token; T is padded up to whole chunks."""
    length = token_T.shape[0]
    padding = -length % chunk
    hidden = jnp.pad(hidden_TD, ((0, padding), (0, 0))).reshape(-1, chunk, hidden_TD.shape[1])
    token = jnp.pad(token_T, (0, padding)).reshape(-1, chunk)
    floor = jnp.pad(floor_T, (0, padding), constant_values=NO_FLOOR).reshape(-1, chunk)
    body = functools.partial(_chunk_logprob, table_VD=table_VD, temperature=temperature, soft_cap=soft_cap)
    logp, entropy = jax.lax.map(jax.checkpoint(lambda xs: body(*xs)), (hidden, token, floor))
    return logp.reshape(-1)[:length], entropy.reshape(-1)[:length]
