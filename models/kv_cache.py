"""Keys and values of the past, one ring of slots per row and layer.

Position p of a row lives in slot p mod S.  Global layers get S = the whole length, local layers S = the window's, so a
position is overwritten exactly when the window has left it behind.  The tree mirrors the model's:
cache["stack_0"]["layer_1"] is a `Ring` whose leading axis L counts the periods of that stack.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from thinkfirst.models import config as model_config

Cache = dict[str, dict[str, "Ring"]]


@flax.struct.dataclass
class Ring:
    """Keys and values of one layer of every period of a stack."""

    key_LBSKH: Float[Array, "L B S K H"]
    value_LBSKH: Float[Array, "L B S K H"]


def num_slots(config: model_config.GemmaConfig, kind: str, length: int) -> int:
    """Slots a layer needs to hold sequences of up to `length` tokens."""
    return min(config.window, length) if kind == "local" else length


def init(config: model_config.GemmaConfig, batch: int, length: int, *, full: bool = False) -> Cache:
    """An empty cache for `batch` rows of up to `length` tokens; `full` (for tests) gives local layers every slot."""

    def ring(kind: str, repeats: int) -> Ring:
        slots = length if full else num_slots(config, kind, length)
        shape = (repeats, batch, slots, config.num_kv_heads, config.head_dim)
        return Ring(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))

    return {
        f"stack_{i}": {f"layer_{j}": ring(kind, repeats) for j, kind in enumerate(kinds)}
        for i, (kinds, repeats) in enumerate(config.stacks)
    }


def fill(
    ring: Ring,
    index: Int[Array, ""],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    length_B: Int[Array, "B"],
) -> Ring:
    """The ring of period `index` holding the last S of each row's first `length` positions."""
    slots = ring.key_LBSKH.shape[2]
    newest_B1 = length_B[:, None] - 1
    source_BS = newest_B1 - jnp.mod(newest_B1 - jnp.arange(slots)[None, :], slots)
    source_BS11 = jnp.maximum(source_BS, 0)[:, :, None, None]

    def put(stack: jax.Array, new_BTKH: jax.Array) -> jax.Array:
        taken_BSKH = jnp.take_along_axis(new_BTKH, source_BS11, axis=1)
        return jax.lax.dynamic_update_index_in_dim(stack, taken_BSKH, index, axis=0)

    return Ring(put(ring.key_LBSKH, key_BTKH), put(ring.value_LBSKH, value_BTKH))


def append(
    ring: Ring,
    index: Int[Array, ""],
    key_BKH: Float[Array, "B K H"],
    value_BKH: Float[Array, "B K H"],
    position_B: Int[Array, "B"],
) -> Ring:
    """The ring of period `index` with each row's token written at its position."""
    row_B = jnp.arange(position_B.shape[0])
    slot_B = jnp.mod(position_B, ring.key_LBSKH.shape[2])

    def put(stack: jax.Array, new_BKH: jax.Array) -> jax.Array:
        return stack.at[index, row_B, slot_B].set(new_BKH)

    return Ring(put(ring.key_LBSKH, key_BKH), put(ring.value_LBSKH, value_BKH))


def layer(ring: Ring, index: Int[Array, ""]) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Keys and values of period `index`."""
    pick = lambda stack: jax.lax.dynamic_index_in_dim(stack, index, axis=0, keepdims=False)  # noqa: E731
    return pick(ring.key_LBSKH), pick(ring.value_LBSKH)


def fork(cache: Cache, group: int) -> Cache:
    """Every row repeated `group` times: one prefilled prompt becomes the start of each of its samples."""
    repeat: Any = lambda stack: jnp.repeat(stack, group, axis=1)  # noqa: E731
    return jax.tree.map(repeat, cache)
