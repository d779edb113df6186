"""Attention of one new token per row against its ring cache, in plain jnp.

Slot s of a ring of S slots holds position p with p mod S = s.  When the row's newest position (already written) is q,
slot s therefore holds position q - ((q - s) mod S); a negative result means "never written".
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from thinkfirst.kernels.decode_attention import quantised

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


Cache = Float[Array, "L B S K H"] | quantised.Quantised
Pair = tuple[Cache, Cache]
PromptCache = Float[Array, "L P T K H"] | quantised.Quantised
PromptPair = tuple[PromptCache, PromptCache]


def written(
    new: tuple[Float[Array, "B K H"], Float[Array, "B K H"]],
    stacks: Pair,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
) -> Pair:
    """The stacked caches with each row's new key and value at its position's slot of one layer."""
    key, value = (_with(stack, x, layer, position_B) for stack, x in zip(stacks, new, strict=True))
    return key, value


def _with(stack: Cache, new_BKH: Float[Array, "B K H"], layer: Int[Array, ""], position_B: Int[Array, "B"]) -> Cache:
    coded = quantised.quantised(new_BKH) if isinstance(stack, quantised.Quantised) else new_BKH
    row_B = jnp.arange(position_B.shape[0])
    put = lambda old, x: old.at[layer, row_B, jnp.mod(position_B, old.shape[2])].set(x)  # noqa: E731
    return jax.tree.map(put, stack, coded)


def _picked(
    stack: Float[Array, "L _ _ K H"] | quantised.Quantised,
    layer: Int[Array, ""],
    dtype: jnp.dtype,
    rows: Int[Array, "_"] | None = None,
) -> Float[Array, "_ _ K H"]:
    """One layer of a stack, or some of its rows, as numbers."""
    one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, axis=0, keepdims=False), stack)
    if rows is not None:
        one = jax.tree.map(lambda x: x[rows], one)
    return quantised.restored(one, dtype) if isinstance(one, quantised.Quantised) else one


def append_attention(
    query_BNH: Float[Array, "B N H"],
    new: tuple[Float[Array, "B K H"], Float[Array, "B K H"]],
    ring: Pair,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
    *,
    scale: float,
    window: int,
    soft_cap: float,
) -> tuple[Float[Array, "B N H"], Pair]:
    """Context of each row's new token, written to its ring in one layer of a stack first, and the rings.

    A row at position -1 is idle: it counts as one at 0.
    """
    position_B = jnp.maximum(position_B, 0)
    ring = written(new, ring, layer, position_B)
    key_BSKH, value_BSKH = (_picked(stack, layer, query_BNH.dtype) for stack in ring)
    context_BNH = attention(query_BNH, key_BSKH, value_BSKH, position_B, scale=scale, window=window, soft_cap=soft_cap)
    return context_BNH, ring


def grouped(
    query_BNH: Float[Array, "B N H"],
    new: tuple[Float[Array, "B K H"], Float[Array, "B K H"]],
    own: Pair,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
    *,
    prompt: PromptPair,
    length_P: Int[Array, "P"],
    group_B: Int[Array, "B"],
    scale: float,
    window: int,
    soft_cap: float,
) -> tuple[Float[Array, "B N H"], Pair]:
    """Context of each row's new token over prompt `group_B` and the row's own tokens, and the own caches.

    `position_B` counts from the row's first own token, which is position 0.  A row at -1 is idle: it looks at nothing
    but its new token, which is written at slot 0.
    """
    length_B = jnp.where(position_B < 0, 0, length_P[group_B])
    position_B = jnp.maximum(position_B, 0)
    own = written(new, own, layer, position_B)
    own_key, own_value = (_picked(stack, layer, query_BNH.dtype) for stack in own)
    prompt_key, prompt_value = (_picked(stack, layer, query_BNH.dtype, group_B) for stack in prompt)
    batch, heads, width = query_BNH.shape
    tokens, groups = prompt_key.shape[1:3]
    query = query_BNH.reshape(batch, groups, heads // groups, width)
    accurate = {"preferred_element_type": jnp.float32}
    of_prompt = jnp.einsum("BKJH,BTKH->BKJT", query, prompt_key, **accurate)
    of_own = jnp.einsum("BKJH,BSKH->BKJS", query, own_key, **accurate)
    score = jnp.concatenate([of_prompt, of_own], axis=-1) * scale
    if soft_cap:
        score = soft_cap * jnp.tanh(score / soft_cap)
    age_BT = length_B[:, None] - jnp.arange(tokens)
    in_prompt_BT = (age_BT > 0) & (age_BT + position_B[:, None] < window) if window else age_BT > 0
    seen = jnp.concatenate([in_prompt_BT, visible(position_B, own_key.shape[1], window)], axis=-1)
    score = jnp.where(seen[:, None, None, :], score, MASKED)
    weight = jnp.exp(score - score.max(axis=-1, keepdims=True))
    weight = (weight / weight.sum(axis=-1, keepdims=True)).astype(own_value.dtype)
    context = jnp.einsum("BKJT,BTKH->BKJH", weight[..., :tokens], prompt_value, **accurate)
    context += jnp.einsum("BKJS,BSKH->BKJH", weight[..., tokens:], own_value, **accurate)
    return context.astype(query_BNH.dtype).reshape(query_BNH.shape), own
