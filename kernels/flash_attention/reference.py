"""Causal attention over whole sequences in plain jnp: the meaning every faster implementation must match.

    score_ij = cap(scale * q_i . k_j)  where cap(x) = soft_cap * tanh(x / soft_cap)
    context_i = sum_j softmax_j(score_ij) v_j  over j <= i, i - j < window, segment_j == segment_i

Grouped queries (GQA): query head n reads key/value head n // (N / K).  Scores and softmax are float32.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MASKED = -1e30  # finite, so that a row without any visible key gives zeros' gradient and not NaN


def attention(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segment_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int,
    soft_cap: float,
) -> Float[Array, "B T N H"]:
    """Context of every position; `window` 0 sees the whole past, `soft_cap` 0 caps nothing."""
    batch, length, heads, width = query_BTNH.shape
    groups = key_BTKH.shape[2]
    query = query_BTNH.reshape(batch, length, groups, heads // groups, width)
    score = jnp.einsum("BTKJH,BSKH->BKTJS", query, key_BTKH, preferred_element_type=jnp.float32) * scale
    if soft_cap:
        score = soft_cap * jnp.tanh(score / soft_cap)
    distance_TS = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    seen_TS = (distance_TS >= 0) & ((distance_TS < window) if window else True)
    seen_BTS = seen_TS & (segment_BT[:, :, None] == segment_BT[:, None, :])
    score = jnp.where(seen_BTS[:, None, :, None], score, MASKED)
    weight = jnp.exp(score - score.max(axis=-1, keepdims=True))
    weight = weight / weight.sum(axis=-1, keepdims=True)
    context = jnp.einsum("BKTJS,BSKH->BTKJH", weight.astype(value_BTKH.dtype), value_BTKH)
    return context.reshape(query_BTNH.shape)
