"""Attention of one new token per row against its cache, as a TPU kernel that also writes the token into the cache.

The caches are stacked over layers, [L, B, S, K, H], and stay where they are: the layer to use is data, prefetched into
scalar memory, and only its blocks are read.  (A `dynamic_index` outside would copy the layer out of the stack and a
`dynamic_update` would copy it back.)  The kernel sees a cache as [L, B, K, S, H], slots on sublanes, so that each block
feeds the matrix unit as it lies.  The change of axes outside is a bitcast: the compiler gives a cache that is carried
through a loop the kernel's layout.  Only one that enters or leaves a program is copied, once, and not if K = 1.

Rows come in groups that share a prompt, and a group in parts of up to 8 rows that are looked at together; without a
prompt a part is a group.  Grid (groups, prompt blocks + parts x own blocks), both axes sequential:

  operand                        block                                  at group g, part p
  query, context, new key/value  whole, in VMEM
  prompt key and value           [K, prompt block, H] of [L,P,K,T,H]    layer, g, t up to the last block in use
  own key and value              [rows, K, block, H] of [L,B,K,S,H]     layer, (g, p), s up to the last block in use

A block beyond the last one in use is neither read (its index does not change) nor looked at.  Carried over the steps
of a group, in VMEM: the queries in float32, those of a key/value head under each other ([K, G * J', H], J' = J rounded
up to 8; the rows that fill up are never looked at), and the softmax so far: maximum, sum, weighted sum.  It starts from
the new token itself, whose score needs no matrix unit; so it is never empty, and the token's slot, which may hold a
position that the window has left behind, is masked.  Prompt and own part meet in this running softmax, which is the
combination by log-sum-exp.  The scores of a prompt block are one matmul for all heads and samples that share it.

Writing: a slot is narrower than what memory can address, so the 16 slots around it are taken from the block at hand,
merged with the new token and sent back by a transfer that is waited for one part later.  Nothing else is written.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from thinkfirst.kernels.decode_attention import plans, reference

VMEM_BYTES = 64 * 2**20
INTERPRET = pltpu.InterpretParams(detect_races=True)  # fills memory with NaN, prints any race
BY_ROWS = (((1,), (1,)), ((), ()))
BY_COLUMNS = (((1,), (0,)), ((), ()))


class _Known:
    """Stands for prefetched numbers that are all the same and known when compiling."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __getitem__(self, _: Any) -> jax.Array:
        return jnp.int32(self.value)


class _Step:
    """Where the grid stands; `of_prompt` and `of_own` tell whether a block is to be looked at, and of what."""

    def __init__(self, group: Any, place: Any, position_ref: Any, length_ref: Any, plan: plans.Plan) -> None:
        self.group, self.place = group, place
        own = jnp.maximum(place - plan.prompt_blocks, 0)
        self.part = jax.lax.div(own, plan.own_blocks)
        self.block = own - self.part * plan.own_blocks
        self.chunk = group * plan.parts + self.part
        self.row = self.chunk * plan.rows
        self.last_block: Any = 0
        if plan.own_blocks > 1:
            newest = functools.reduce(jnp.maximum, [position_ref[self.row + b] for b in range(plan.rows)])
            self.last_block = jax.lax.div(jnp.minimum(newest, plan.slots - 1), plan.block)
        self.of_own = (place >= plan.prompt_blocks) & (self.block <= self.last_block)
        self.length = length_ref[group] if plan.tokens else 0
        self.of_prompt = (place < plan.prompt_blocks) & (place * plan.prompt_block < self.length)


def _numbers(position_ref: Any, length_ref: Any, plan: plans.Plan) -> tuple[Any, Any]:
    """The prefetched numbers, or what is known of them when compiling."""
    if plan.known_position is None:
        return position_ref, length_ref
    return _Known(plan.known_position), _Known(plan.known_length or 0)


def _dot(left: jax.Array, right: jax.Array, dimensions: Any) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if right.dtype == jnp.float32 else None
    left = left.astype(right.dtype)
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _capped(score: jax.Array, plan: plans.Plan) -> jax.Array:
    score = score * plan.scale
    return plan.soft_cap * jnp.tanh(score / plan.soft_cap) if plan.soft_cap else score


@dataclasses.dataclass(frozen=True)
class _Softmax:
    """Refs of a group's running softmax, [K, G * J', ...]."""

    query_ref: Any
    maximum_ref: Any
    total_ref: Any
    weighted_ref: Any

    def start(self, part: Any, step: _Step, operands: tuple[Any, Any, Any], plan: plans.Plan) -> None:
        """The softmax over the new token alone, for the rows of a part."""
        query_ref, new_key_ref, new_value_ref = operands
        for b in range(plan.rows):
            row = (step.group * plan.parts + part) * plan.rows + b
            first = pl.multiple_of((part * plan.rows + b) * plan.padded, plans.SUBLANES)
            stacked = pl.ds(first, plan.padded)
            query = query_ref[row].astype(jnp.float32)
            for k in range(plan.kv_heads):
                self.query_ref[k, pl.ds(first, plan.shared)] = query[k * plan.shared : (k + 1) * plan.shared]
                key, value = (ref[row, k : k + 1].astype(jnp.float32) for ref in (new_key_ref, new_value_ref))
                score = jnp.sum(self.query_ref[k, stacked] * key, axis=1, keepdims=True)
                self.maximum_ref[k, stacked] = _capped(score, plan)
                self.total_ref[k, stacked] = jnp.ones((plan.padded, 1), jnp.float32)
                self.weighted_ref[k, stacked] = jnp.broadcast_to(value, (plan.padded, value.shape[1]))

    def extend(self, at: Any, score: jax.Array, visible: jax.Array, weigh: Callable[[jax.Array], jax.Array]) -> None:
        """Takes in a block of scores; `weigh` multiplies weights by the block's values."""
        score = jnp.where(visible, score, reference.MASKED)
        before = self.maximum_ref[at]
        maximum = jnp.maximum(before, jnp.max(score, axis=1, keepdims=True))
        weight, fade = jnp.exp(score - maximum), jnp.exp(before - maximum)
        self.maximum_ref[at] = maximum
        self.total_ref[at] = self.total_ref[at] * fade + jnp.sum(weight, axis=1, keepdims=True)
        self.weighted_ref[at] = self.weighted_ref[at] * fade + weigh(weight)

    def finish(self, step: _Step, context_ref: Any, plan: plans.Plan) -> None:
        """Writes the context of a part."""
        for k in range(plan.kv_heads):
            context = self.weighted_ref[k, _part(step, plan)] / self.total_ref[k, _part(step, plan)]
            for b in range(plan.rows):
                heads = context[b * plan.padded : b * plan.padded + plan.shared].astype(context_ref.dtype)
                context_ref[step.row + b, k * plan.shared : (k + 1) * plan.shared] = heads


def _part(step: _Step, plan: plans.Plan) -> Any:
    """Where the rows of a part are in what is stacked for the group."""
    size = plan.rows * plan.padded
    return pl.ds(pl.multiple_of(step.part * size, plans.SUBLANES), size)


def _seen(position: jax.Array, block: jax.Array, plan: plans.Plan) -> jax.Array:
    """Which slots of a block hold a token that the new one at `position` may look at, itself excepted."""
    slot = block * plan.block + jax.lax.broadcasted_iota(jnp.int32, (plan.padded, plan.block), 1)
    age = jax.lax.rem(position, plan.slots) - slot
    age = jnp.where(age < 0, age + plan.slots, age)
    oldest = jnp.minimum(position, plan.window - 1) if 0 < plan.window < plan.slots else position
    return (age > 0) & (age <= oldest)


def _extend_by_own(
    softmax: _Softmax, step: _Step, position_ref: Any, blocks: tuple[Any, ...], plan: plans.Plan
) -> None:
    """Every row of the part against a block of its own cache."""
    key_ref, value_ref = blocks
    rows = range(plan.rows)
    seen = jnp.concatenate([_seen(position_ref[step.row + b], step.block, plan) for b in rows])
    for k in range(plan.kv_heads):
        query = softmax.query_ref[k, _part(step, plan)]
        score = jnp.concatenate([_dot(query[plan.stacked(b)], key_ref[b, k], BY_ROWS) for b in rows])

        def weigh(weight: jax.Array, k: int = k) -> jax.Array:
            parts = [_dot(weight[plan.stacked(b)], value_ref[b, k], BY_COLUMNS) for b in rows]
            return jnp.concatenate(parts)

        softmax.extend((k, _part(step, plan)), _capped(score, plan), seen, weigh)


def _extend_by_prompt(softmax: _Softmax, step: _Step, blocks: tuple[Any, ...], plan: plans.Plan) -> None:
    """All rows of the group against a block of the prompt that they share."""
    key_ref, value_ref = blocks
    shape = (plan.parts * plan.rows * plan.padded, plan.prompt_block)
    token = step.place * plan.prompt_block + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    for k in range(plan.kv_heads):
        score = _dot(softmax.query_ref[k], key_ref[k], BY_ROWS)
        weigh = functools.partial(lambda weight, k: _dot(weight, value_ref[k], BY_COLUMNS), k=k)
        softmax.extend(k, _capped(score, plan), token < step.length, weigh)


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Sends the slots around each new token back to one cache: 16 at a time, the old ones from the block at hand."""

    cache_ref: Any
    block_ref: Any
    new_ref: Any
    tile_ref: Any
    semaphore: Any

    def copy(self, layer: jax.Array, chunk: jax.Array, b: int, slot: jax.Array, plan: plans.Plan) -> Any:
        """The transfer of row b of a chunk; chunks take turns with two sets of tiles."""
        turn = jax.lax.rem(chunk, 2)
        target = self.cache_ref.at[layer, chunk * plan.rows + b, :, pl.ds(_tile(slot), plans.TILE)]
        return pltpu.make_async_copy(self.tile_ref.at[turn, b], target, self.semaphore.at[turn])

    def send(self, layer: jax.Array, step: _Step, b: int, slot: jax.Array, plan: plans.Plan) -> None:
        """Merges row b's new token into its tile and starts to write it."""
        start = pl.multiple_of(_tile(slot) - step.block * plan.block, plans.TILE)
        for k in range(plan.kv_heads):
            tile = self.block_ref[b, k, pl.ds(start, plans.TILE)].astype(jnp.float32)
            here = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 0) == slot - _tile(slot)
            tile = jnp.where(here, self.new_ref[step.row + b, k : k + 1].astype(jnp.float32), tile)
            self.tile_ref[jax.lax.rem(step.chunk, 2), b, k] = tile.astype(self.tile_ref.dtype)
        self.copy(layer, step.chunk, b, slot, plan).start()


def _tile(slot: jax.Array) -> jax.Array:
    """First slot of the tile that holds a slot."""
    return pl.multiple_of(slot & ~(plans.TILE - 1), plans.TILE)


def _kernel(
    layer_ref: Any, position_ref: Any, length_ref: Any,
    query_ref: Any, new_key_ref: Any, new_value_ref: Any, key_ref: Any, value_ref: Any, *refs: Any, plan: plans.Plan,
) -> None:  # fmt: skip
    num_prompt_refs = 2 if plan.tokens else 0
    prompt_refs, refs = refs[:num_prompt_refs], refs[num_prompt_refs:]
    context_ref, key_cache_ref, value_cache_ref, key_tile_ref, value_tile_ref, semaphore, *state_refs = refs
    position_ref, length_ref = _numbers(position_ref, length_ref, plan)
    softmax, layer = _Softmax(*state_refs), layer_ref[0]
    writers = (
        _Writer(key_cache_ref, key_ref, new_key_ref, key_tile_ref, semaphore.at[0]),
        _Writer(value_cache_ref, value_ref, new_value_ref, value_tile_ref, semaphore.at[1]),
    )
    step = _Step(pl.program_id(0), pl.program_id(1), position_ref, length_ref, plan)

    @pl.when(step.place == 0)
    def _() -> None:
        operands = (query_ref, new_key_ref, new_value_ref)
        jax.lax.fori_loop(0, plan.parts, lambda part, _: softmax.start(part, step, operands, plan), None)

    if plan.tokens:

        @pl.when(step.of_prompt)
        def look_at_prompt() -> None:
            _extend_by_prompt(softmax, step, prompt_refs, plan)

    @pl.when(step.of_own)
    def _() -> None:
        for b in range(plan.rows):
            slot = jax.lax.rem(position_ref[step.row + b], plan.slots)

            @pl.when(jax.lax.div(slot, plan.block) == step.block)
            def _(b: int = b, slot: jax.Array = slot) -> None:
                for writer in writers:
                    writer.send(layer, step, b, slot, plan)

        _extend_by_own(softmax, step, position_ref, (key_ref, value_ref), plan)

    def wait_for_writes(chunk: jax.Array) -> None:
        for b in range(plan.rows):
            slot = jax.lax.rem(position_ref[chunk * plan.rows + b], plan.slots)
            for writer in writers:
                writer.copy(layer, chunk, b, slot, plan).wait()

    @pl.when((step.place >= plan.prompt_blocks) & (step.block == plan.own_blocks - 1))
    def _() -> None:
        softmax.finish(step, context_ref, plan)
        pl.when(step.chunk > 0)(lambda: wait_for_writes(step.chunk - 1))
        pl.when(step.chunk == plan.groups * plan.parts - 1)(lambda: wait_for_writes(step.chunk))


def _call(
    query_BNH: jax.Array, new: Any, own: Any, layer: jax.Array, position_B: jax.Array, *,
    prompt: tuple[jax.Array, ...], length: jax.Array, plan: plans.Plan, name: str, interpret: Any,
) -> tuple[jax.Array, reference.Pair]:  # fmt: skip
    width, dtype = query_BNH.shape[2], own[0].dtype

    def own_block(group: jax.Array, place: jax.Array, layer: Any, position: Any, length: Any) -> Any:
        step = _Step(group, place, *_numbers(position, length, plan), plan)
        return layer[0], step.chunk, 0, jnp.minimum(step.block, step.last_block), 0

    def prompt_block(group: jax.Array, place: jax.Array, layer: Any, position: Any, length: Any) -> Any:
        _, length = _numbers(position, length, plan)
        last = jax.lax.div(jnp.maximum(length[group] - 1, 0), plan.prompt_block)
        return layer[0], group, 0, jnp.minimum(place, last), 0

    whole, anywhere = pl.BlockSpec(memory_space=pltpu.VMEM), pl.BlockSpec(memory_space=pl.ANY)
    own_spec = pl.BlockSpec((None, plan.rows, plan.kv_heads, plan.block, width), own_block)
    prompt_spec = pl.BlockSpec((None, None, plan.kv_heads, plan.prompt_block, width), prompt_block)
    tile = pltpu.VMEM((2, plan.rows, plan.kv_heads, plans.TILE, width), dtype)
    stacked = (plan.kv_heads, plan.parts * plan.rows * plan.padded)
    state = [pltpu.VMEM((*stacked, size), jnp.float32) for size in (width, 1, 1, width)]
    slots_inside = [cache.swapaxes(2, 3) for cache in (*own, *prompt)]
    context_BNH, *written = pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(plan.groups, plan.steps),
            in_specs=[whole] * 3 + [own_spec] * 2 + [prompt_spec] * len(prompt),
            out_specs=[whole, anywhere, anywhere],
            scratch_shapes=[tile, tile, pltpu.SemaphoreType.DMA((2, 2)), *state],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query_BNH, *slots_inside[:2])],
        input_output_aliases={6: 1, 7: 2},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=interpret,
        name=name,
    )(jnp.reshape(layer, (1,)), position_B, length, query_BNH, *new, *slots_inside)
    return context_BNH, (written[0].swapaxes(2, 3), written[1].swapaxes(2, 3))


def append_attention(
    query_BNH: Float[Array, "B N H"],
    new: tuple[Float[Array, "B K H"], Float[Array, "B K H"]],
    ring: reference.Pair,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
    *,
    scale: float,
    window: int,
    soft_cap: float,
    block: int = plans.BLOCK,
    known_position: int | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "B N H"], reference.Pair]:
    """Context of each row's new token, and the rings that hold it; see reference.append_attention.

    `block` slots of a row are read at a time.  `known_position` says when compiling that every row stands there:
    a static profile reads prefetched data as zeros.
    """
    plan = plans.make(
        query_BNH, ring[0], ring[0].shape[1], tokens=0, block=block, scale=scale, window=window, soft_cap=soft_cap,
        known_position=known_position, known_length=None,
    )  # fmt: skip
    return _call(
        query_BNH, new, ring, layer, position_B, prompt=(), length=jnp.zeros((1,), jnp.int32), plan=plan,
        name="append_attention", interpret=interpret,
    )  # fmt: skip


def grouped(
    query_BNH: Float[Array, "B N H"],
    new: tuple[Float[Array, "B K H"], Float[Array, "B K H"]],
    own: reference.Pair,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
    *,
    prompt: tuple[Float[Array, "L P T K H"], Float[Array, "L P T K H"]],
    length_P: Int[Array, "P"],
    scale: float,
    soft_cap: float,
    block: int = plans.BLOCK,
    known: tuple[int, int] | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "B N H"], reference.Pair]:
    """Context of each row's new token over its prompt and its own tokens; see reference.grouped.

    `known`: the position of every row and the length of every prompt, as in `append_attention`.
    """
    plan = plans.make(
        query_BNH, own[0], prompt[0].shape[1], tokens=prompt[0].shape[2], block=block,
        scale=scale, window=0, soft_cap=soft_cap,
        known_position=known[0] if known else None, known_length=known[1] if known else None,
    )  # fmt: skip
    return _call(
        query_BNH, new, own, layer, position_B, prompt=prompt, length=length_P, plan=plan,
        name="grouped_decode", interpret=interpret,
    )  # fmt: skip
