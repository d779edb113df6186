"""Where the grid of the kernel of decoding stands, and which blocks it needs there, from prefetched numbers."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from thinkfirst.kernels.decode_attention import plans


class _Known:
    """Stands for prefetched numbers that are known when compiling: start + step * index."""

    def __init__(self, start: int, step: int = 0) -> None:
        self.start, self.step = start, step

    def __getitem__(self, index: Any) -> jax.Array:
        return jnp.int32(self.start) + jnp.int32(self.step) * index


class _FromZero:
    """Prefetched numbers, but 0 where they are negative: an idle row stands at position 0."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __getitem__(self, index: Any) -> jax.Array:
        return jnp.maximum(self.ref[index], 0)


@dataclasses.dataclass(frozen=True)
class Data:
    """The layer, the position of each row, and of prompts: the rows in their order, where those of each begin, length.

    `group` is the prompt of each row, or the number of prompts for a row that looks at none.
    """

    layer: Any
    position: Any
    group: Any
    order: Any
    first: Any
    length: Any

    @classmethod
    def of(cls, refs: Sequence[Any], plan: plans.Plan) -> "Data":
        """From the refs, or from what is known of them when compiling: then the rows' prompts are in order."""
        if plan.known_position is None:
            layer, position, *of_prompts = refs
            return cls(layer, _FromZero(position), *(of_prompts or [None] * 4))
        each = plan.batch // max(plan.prompts, 1)
        position, length = _Known(plan.known_position), _Known(plan.known_length or 0)
        return cls(refs[0], position, None, _Known(0, 1), _Known(0, each), length)


class Step:
    """A step of the grid; `of_own` and `of_prompt` tell whether there is a block to be looked at, and of what."""

    def __init__(self, place: Any, data: Data, plan: plans.Plan) -> None:
        self.own = jnp.minimum(place, plan.own_steps - 1)
        self.turn = jax.lax.rem(self.own, 2)
        self.chunk = jax.lax.div(self.own, plan.own_blocks)
        self.block = self.own - self.chunk * plan.own_blocks
        self.row = self.chunk * plan.rows
        self.in_own = place < plan.own_steps
        self._last = lambda b: _last_block(data.position[self.row + b], plan)
        if plan.prompts:
            after = jnp.maximum(place - plan.own_steps, 0)
            self.prompt = jax.lax.div(after, plan.prompt_blocks)
            self.tokens = after - self.prompt * plan.prompt_blocks
            self.begin, self.end = data.first[self.prompt], data.first[self.prompt + 1]
            self.length = data.length[self.prompt]
            in_use = (self.begin < self.end) & (self.tokens * plan.prompt_block < self.length)
            self.of_prompt = (place >= plan.own_steps) & in_use
            self.ends_prompt = (self.tokens + 1) * plan.prompt_block >= self.length

    def reads(self, b: int) -> jax.Array:
        """Whether row b of the chunk has come as far as the block."""
        return self.block <= self._last(b)

    def of_own(self, plan: plans.Plan) -> jax.Array:
        """Whether any row of the chunk has."""
        return self.in_own & (self.block <= functools.reduce(jnp.maximum, map(self._last, range(plan.rows))))


def _last_block(position: jax.Array, plan: plans.Plan) -> Any:
    """The last block in use of a row at `position`."""
    return jax.lax.div(jnp.minimum(position, plan.slots - 1), plan.block)


def prompt_block(place: jax.Array, *refs: Any, plan: plans.Plan, ndim: int) -> Any:
    """Index of the block of a prompt; at a prompt that no row looks at it stays where it is."""
    data = Data.of(refs, plan)
    step = Step(place, data, plan)
    prompt = step.prompt
    if data.group is not None:  # that of the last row so far, which is this one if any row looks at it
        row = data.order[jnp.maximum(step.end - 1, 0)]
        prompt = jnp.minimum(data.group[row], plan.prompts - 1)
    last = jax.lax.div(jnp.maximum(data.length[prompt] - 1, 0), plan.prompt_block)
    tokens = jnp.where(step.begin < step.end, jnp.minimum(step.tokens, last), jnp.where(step.end > 0, last, 0))
    return (data.layer[0], prompt, 0, tokens, 0)[:ndim]
