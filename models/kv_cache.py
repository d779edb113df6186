"""Keys and values of the past: what rows have of their own, and prompts that rows share.

A layer whose window is shorter than the longest sequence keeps a ring of the window's length for each row: position p
lives in slot p mod S and is overwritten exactly when the window has left it behind.  Every other layer keeps the prompt
once, for all rows that continue it, and of each row only what came after.

The trees mirror the model's: tree["stack_0"]["layer_1"] is a `Layer` whose leading axis L counts the periods of that
stack.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from thinkfirst.kernels.decode_attention import quantised
from thinkfirst.models import config as model_config

Tree = dict[str, dict[str, "Layer"]]
Slots = Float[Array, "L B S K H"] | quantised.Quantised


@flax.struct.dataclass
class Layer:
    """Keys and values of one layer of every period of a stack; S slots of each of B rows, [L, B, S, K, H]."""

    key_LBSKH: Slots
    value_LBSKH: Slots

    @property
    def pair(self) -> tuple[Slots, Slots]:
        """(keys, values), as kernels want them."""
        return self.key_LBSKH, self.value_LBSKH


@dataclasses.dataclass(frozen=True)
class Rooms:
    """The most tokens of a prompt, and of what comes after it; whether they are kept as 8-bit integers."""

    prompt: int
    new: int
    int8: bool = False

    def rings(self, config: model_config.GemmaConfig, kind: str) -> bool:
        """Whether layers of this kind keep rings."""
        return kind == "local" and config.window < self.prompt + self.new


@flax.struct.dataclass
class Shared:
    """Prompts that rows continue: those layers without rings, the length of each, and which one each row has."""

    layers: Tree
    length_Q: Int[Array, "Q"]
    of_row_B: Int[Array, "B"]


def own(config: model_config.GemmaConfig, rows: int, rooms: Rooms) -> Tree:
    """What each row has for itself: rings, and the tokens after the prompt elsewhere."""
    return _zeros(config, rows, rooms, lambda kind: config.window if rooms.rings(config, kind) else rooms.new)


def prompts(config: model_config.GemmaConfig, rows: int, rooms: Rooms) -> Tree:
    """What prefilling prompts leaves: the start of a ring, or the whole prompt."""
    ring = min(config.window, rooms.prompt)
    return _zeros(config, rows, rooms, lambda kind: ring if rooms.rings(config, kind) else rooms.prompt)


def resident(config: model_config.GemmaConfig, rows: int, rooms: Rooms) -> Tree:
    """Prompts as long as some row continues them: the layers without rings."""
    return _zeros(config, rows, rooms, lambda kind: 0 if rooms.rings(config, kind) else rooms.prompt)


def _zeros(config: model_config.GemmaConfig, rows: int, rooms: Rooms, slots_of: Callable[[str], int]) -> Tree:
    """A tree of the layers that have any slots."""

    def layer(slots: int, repeats: int) -> Layer:
        shape = (repeats, rows, slots, config.num_kv_heads, config.head_dim)
        empty = jnp.zeros(shape, config.dtype)
        return Layer(*[quantised.quantised(empty) if rooms.int8 else empty] * 2)

    return {
        f"stack_{i}": {f"layer_{j}": layer(slots_of(kind), repeats) for j, kind in enumerate(kinds) if slots_of(kind)}
        for i, (kinds, repeats) in enumerate(config.stacks)
    }


def fill(
    layer: Layer,
    index: Int[Array, ""],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    length_B: Int[Array, "B"],
) -> Layer:
    """The layer of period `index` holding the last S of each row's first `length` positions."""
    slots = jax.tree.leaves(layer)[0].shape[2]
    newest_B1 = length_B[:, None] - 1
    source_BS = newest_B1 - jnp.mod(newest_B1 - jnp.arange(slots)[None, :], slots)
    source_BS11 = jnp.maximum(source_BS, 0)[:, :, None, None]

    def put(stack: Slots, new_BTKH: jax.Array) -> Slots:
        taken_BSKH = jnp.take_along_axis(new_BTKH, source_BS11, axis=1)
        coded = quantised.quantised(taken_BSKH) if isinstance(stack, quantised.Quantised) else taken_BSKH
        update = lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new, index, axis=0)  # noqa: E731
        return jax.tree.map(update, stack, coded)

    return Layer(put(layer.key_LBSKH, key_BTKH), put(layer.value_LBSKH, value_BTKH))


def keep(held: Tree, filled: Tree, place_P: Int[Array, "P"]) -> Tree:
    """Resident prompts with those just filled at `place_P`; layers with rings are left out."""
    return {
        stack: {
            name: jax.tree.map(lambda old, new: old.at[:, place_P].set(new), layer, filled[stack][name])
            for name, layer in layers.items()
        }
        for stack, layers in held.items()
    }


def begin(rows: Tree, filled: Tree, held: Tree, *, row: Int[Array, ""], prompt: Int[Array, ""]) -> Tree:
    """The rows' own layers with the rings of `row` started from prompt number `prompt` of those just filled."""

    def start(old: jax.Array, new: jax.Array) -> jax.Array:
        ring = jax.lax.dynamic_slice_in_dim(new, prompt, 1, axis=1)
        return jax.lax.dynamic_update_slice(old, ring, (0, row, *[0] * (old.ndim - 2)))

    return {
        stack: {
            name: layer if name in held[stack] else jax.tree.map(start, layer, filled[stack][name])
            for name, layer in layers.items()
        }
        for stack, layers in rows.items()
    }
