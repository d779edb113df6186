"""New tokens written into a cache by the kernel of decoding: the slots around each, sent back with it among them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from thinkfirst.kernels.decode_attention import plans, steps


@dataclasses.dataclass(frozen=True)
class Writer:
    """Sends the slots around each new token back to one cache: 16 at a time, the old ones from the block at hand."""

    cache_ref: Any
    block_ref: Any
    new_ref: Any
    tile_ref: Any
    semaphore: Any

    def send(self, layer: jax.Array, step: steps.Step, b: int, slot: jax.Array, plan: plans.Plan) -> None:
        """Merges the new token of row b of the chunk into its tile and starts to write it."""
        start = pl.multiple_of(_tile(slot) - step.block * plan.block, plans.TILE)
        for k in range(plan.kv_heads):
            tile = self.block_ref[b, k, pl.ds(start, plans.TILE)].astype(jnp.float32)
            here = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 0) == slot - _tile(slot)
            tile = jnp.where(here, self.new_ref[k, pl.ds(step.row + b, 1)], tile)
            self.tile_ref[jax.lax.rem(step.chunk, 2), b, k] = tile.astype(self.tile_ref.dtype)
        self._copy(layer, step.chunk, b, slot, plan).start()

    def wait(self, layer: jax.Array, chunk: jax.Array, b: int, slot: jax.Array, plan: plans.Plan) -> None:
        """Returns when the token of row b of that chunk is written."""
        self._copy(layer, chunk, b, slot, plan).wait()

    def _copy(self, layer: jax.Array, chunk: jax.Array, b: int, slot: jax.Array, plan: plans.Plan) -> Any:
        """The transfer; chunks take turns with two sets of tiles."""
        turn = jax.lax.rem(chunk, 2)
        target = self.cache_ref.at[layer, chunk * plan.rows + b, :, pl.ds(_tile(slot), plans.TILE)]
        return pltpu.make_async_copy(self.tile_ref.at[turn, b], target, self.semaphore.at[turn])


def _tile(slot: jax.Array) -> jax.Array:
    """First slot of the tile that holds a slot."""
    return pl.multiple_of(slot & ~(plans.TILE - 1), plans.TILE)
