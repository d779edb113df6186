"""Attention of one new token per row against its ring cache, in plain jnp.

Slot s of a ring of S slots holds position p with p mod S = s.  When the row's newest position (already written) is q,
slot s therefore holds position q - ((q - s) mod S); a negative result means "never written".
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30


def held_position(position_B: Int[Array, "B"], num_slots: int) -> Int[Array, "B S"]:
    """Position held by each slot once `position_B` has been written; negative where nothing was."""
    slot_S = jnp.arange(num_slots)[None, :]
    return position_B[:, None] - jnp.mod(position_B[:, None] - slot_S, num_slots)


def visible(position_B: Int[Array, "B"], num_slots: int, window: int) -> Bool[Array, "B S"]:
    """Slots the newest token may look at; `window` 0 means the whole past."""
    held_BS = held_position(position_B, num_slots)
    seen_BS = held_BS >= 0
    return seen_BS & (position_B[:, None] - held_BS < window) if window else seen_BS


def attention(
    query_BNH: Float[Array, "B N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    position_B: Int[Array, "B"],
    *,
    scale: float,
    window: int,
    soft_cap: float,
) -> Float[Array, "B N H"]:
    """Context of the newest token of each row; scores and softmax in float32."""
    batch, heads, width = query_BNH.shape
    slots, groups = key_BSKH.shape[1], key_BSKH.shape[2]
    query = query_BNH.reshape(batch, groups, heads // groups, width)
    score = jnp.einsum("BKJH,BSKH->BKJS", query, key_BSKH, preferred_element_type=jnp.float32) * scale
    if soft_cap:
        score = soft_cap * jnp.tanh(score / soft_cap)
    score = jnp.where(visible(position_B, slots, window)[:, None, None, :], score, MASKED)
    weight = jnp.exp(score - score.max(axis=-1, keepdims=True))
    weight = weight / weight.sum(axis=-1, keepdims=True)
    context = jnp.einsum("BKJS,BSKH->BKJH", weight.astype(value_BSKH.dtype), value_BSKH)
    return context.reshape(query_BNH.shape)
