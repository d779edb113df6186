"""Copies between the rows' own caches, which stay in HBM, and VMEM, made by the kernel of decoding itself.

A cache is one or two arrays of slots: [L, B, K, S, H], and [L, B, K, S] for the scale of 8-bit numbers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from thinkfirst.kernels.decode_attention import plans, steps


@dataclasses.dataclass(frozen=True)
class Reader:
    """Brings in the blocks of one array, [rows, K, block, ...] at a step; two sets of buffers take turns."""

    cache_ref: Any
    buffer_ref: Any
    semaphore: Any

    def start(self, layer: jax.Array, step: steps.Step, plan: plans.Plan) -> None:
        """Asks for the block of every row that has come so far."""
        for b in range(plan.rows):
            pl.when(step.reads(b))(self._copy(layer, step, b, plan).start)

    def wait(self, layer: jax.Array, step: steps.Step, plan: plans.Plan) -> None:
        """Returns when they are here.  In a buffer never filled before there are zeros: 0 times what it held is 0."""
        for b in range(plan.rows):
            pl.when(step.reads(b))(self._copy(layer, step, b, plan).wait)

            @pl.when((step.own < 2) & ~step.reads(b))
            def _(b: int = b) -> None:
                buffer_ref = self.buffer_ref.at[step.turn, b]
                buffer_ref[...] = jnp.zeros(buffer_ref.shape, buffer_ref.dtype)

    def _copy(self, layer: jax.Array, step: steps.Step, b: int, plan: plans.Plan) -> Any:
        slots = pl.ds(pl.multiple_of(step.block * plan.block, plan.block), plan.block)
        source = self.cache_ref.at[layer, step.row + b, :, slots]
        return pltpu.make_async_copy(source, self.buffer_ref.at[step.turn, b], self.semaphore.at[step.turn])


@dataclasses.dataclass(frozen=True)
class Writer:
    """Sends the slots around each new token back to one array, the old ones from the block at hand."""

    cache_ref: Any
    buffer_ref: Any
    new_ref: Any
    tile_ref: Any
    semaphore: Any

    @property
    def on_lanes(self) -> bool:
        """Whether slots are on lanes, which is so for scales, or on sublanes."""
        return len(self.tile_ref.shape) == 4

    @property
    def size(self) -> int:
        """Slots that are written together."""
        return self.tile_ref.shape[3]

    def send(self, layer: jax.Array, step: steps.Step, b: int, slot: jax.Array, plan: plans.Plan) -> None:
        """Merges the new token of row b of the chunk into its tile and starts to write it."""
        start = pl.multiple_of(self._first(slot) - step.block * plan.block, self.size)
        for k in range(plan.kv_heads):
            head = pl.ds(k, 1) if self.on_lanes else k
            tile = self.buffer_ref[step.turn, b, head, pl.ds(start, self.size)].astype(jnp.float32)
            place = jax.lax.broadcasted_iota(jnp.int32, tile.shape, int(self.on_lanes))
            tile = jnp.where(place == slot - self._first(slot), self.new_ref[k, pl.ds(step.row + b, 1)], tile)
            self.tile_ref[jax.lax.rem(step.chunk, 2), b, head] = tile.astype(self.tile_ref.dtype)
        self._copy(layer, step.chunk, b, slot, plan).start()

    def wait(self, layer: jax.Array, chunk: jax.Array, b: int, slot: jax.Array, plan: plans.Plan) -> None:
        """Returns when the token of row b of that chunk is written."""
        self._copy(layer, chunk, b, slot, plan).wait()

    def _copy(self, layer: jax.Array, chunk: jax.Array, b: int, slot: jax.Array, plan: plans.Plan) -> Any:
        """The transfer; chunks take turns with two sets of tiles."""
        turn = jax.lax.rem(chunk, 2)
        target = self.cache_ref.at[layer, chunk * plan.rows + b, :, pl.ds(self._first(slot), self.size)]
        return pltpu.make_async_copy(self.tile_ref.at[turn, b], target, self.semaphore.at[turn])

    def _first(self, slot: jax.Array) -> jax.Array:
        """First slot of the tile that holds a slot."""
        return pl.multiple_of(slot & ~(self.size - 1), self.size)
