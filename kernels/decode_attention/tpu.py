"""Attention of one new token per row against its cache, as a TPU kernel that also writes the token into the cache.

The caches are stacked over layers, [L, B, S, K, H], and stay where they are: the layer to use is data, prefetched into
scalar memory, and only its blocks are read.  (A `dynamic_index` outside would copy the layer out of the stack and a
`dynamic_update` would copy it back.)  The kernel sees a cache as [L, B, K, S, H], slots on sublanes, so that each block of
it feeds the matrix unit as it lies.  The change of axes outside is a bitcast: the kernel's layout is the one that the
compiler gives to a cache that is carried through a loop.  Only a cache that enters or leaves a program is copied, once.

Rows are visited in chunks: `rows` rows when each has only a cache of its own, the G samples of a prompt when they share
it.  Grid (chunks, prompt blocks + own blocks), the second axis sequential:

  operand                    block                                  at chunk c, step t
  query, context             [rows, N, H]                           c
  new key and value          [rows, K, H]                           c
  prompt key and value       [K, prompt block, H] of [L,P,K,T,H]    layer, c, min(t, last prompt block in use)
  own key and value          [rows, K, block, H] of [L,B,K,S,H]     layer, c, min(t - prompt blocks, last block in use)

A block beyond the last one in use is neither read (its index does not change) nor computed.  Carried over the steps of a
chunk, in VMEM: the queries in float32, those of a key/value head under each other ([K, rows * J', H], J' = J rounded up
to 8; the rows that fill up are never looked at), and the softmax so far: maximum, sum, weighted sum.  It starts from the
new token itself, whose score needs no matrix unit; so it is never empty, and the token's slot, which may hold a position
that the window has left behind, is masked.  Prompt and own part meet in this running softmax, which is the combination by
log-sum-exp.  Scores of a prompt block are one matmul for all the heads and samples that share it.

Writing: a slot is narrower than what memory can address, so the 16 slots around it are taken from the block at hand,
merged with the new token and sent back by a DMA that runs beside the attention.  Nothing else is written to a cache.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

MASKED = -1e30
TILE = 16  # slots that are written together
SUBLANES = 8
CHUNK_BYTES = 2**21  # of keys (and of values) read in one step; two of each are in VMEM
CHUNK_ROWS = 8
VMEM_BYTES = 64 * 2**20
ROWS_BY_ROWS = (((1,), (1,)), ((), ()))
ROWS_BY_COLUMNS = (((1,), (0,)), ((), ()))

Pair = tuple[Float[Array, "L B S K H"], Float[Array, "L B S K H"]]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is fixed when the kernel is compiled."""

    rows: int
    slots: int
    block: int
    prompt_block: int
    prompt_blocks: int
    groups: int
    shared: int
    scale: float
    window: int
    soft_cap: float
    known_position: int | None
    known_length: int | None

    @property
    def padded(self) -> int:
        """Query heads that share a key/value head, rounded up to whole sublane tiles."""
        return -(-self.shared // SUBLANES) * SUBLANES

    @property
    def steps(self) -> int:
        """Blocks of a chunk, those of the prompt first."""
        return self.prompt_blocks + self.slots // self.block

    def row(self, b: int) -> slice:
        """Where the stacked queries of row b are."""
        return slice(b * self.padded, (b + 1) * self.padded)


class _Known:
    """Stands for prefetched numbers that are all the same and known when compiling."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __getitem__(self, _: Any) -> jax.Array:
        return jnp.int32(self.value)


def _dot(left: jax.Array, right: jax.Array, dimensions: Any) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if right.dtype == jnp.float32 else None
    left = left.astype(right.dtype)
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _capped(score: jax.Array, plan: _Plan) -> jax.Array:
    score = score * plan.scale
    return plan.soft_cap * jnp.tanh(score / plan.soft_cap) if plan.soft_cap else score


@dataclasses.dataclass(frozen=True)
class _Softmax:
    """Refs of the running softmax, [K, rows * J', ...]."""

    query_ref: Any
    maximum_ref: Any
    total_ref: Any
    weighted_ref: Any

    def start(self, query_ref: Any, new_key_ref: Any, new_value_ref: Any, plan: _Plan) -> None:
        """The softmax over the new token alone."""
        for b in range(plan.rows):
            query = query_ref[b].astype(jnp.float32)
            for k in range(plan.groups):
                first = b * plan.padded
                self.query_ref[k, first : first + plan.shared] = query[k * plan.shared : (k + 1) * plan.shared]
                key, value = (ref[b, k : k + 1].astype(jnp.float32) for ref in (new_key_ref, new_value_ref))
                score = jnp.sum(self.query_ref[k, plan.row(b)] * key, axis=1, keepdims=True)
                self.maximum_ref[k, plan.row(b)] = _capped(score, plan)
                self.total_ref[k, plan.row(b)] = jnp.ones((plan.padded, 1), jnp.float32)
                self.weighted_ref[k, plan.row(b)] = jnp.broadcast_to(value, (plan.padded, value.shape[1]))

    def extend(self, k: int, score: jax.Array, visible: jax.Array, weigh: Callable[[jax.Array], jax.Array]) -> None:
        """Takes in a block of scores of head k; `weigh` multiplies weights by the block's values."""
        score = jnp.where(visible, score, MASKED)
        before = self.maximum_ref[k]
        maximum = jnp.maximum(before, jnp.max(score, axis=1, keepdims=True))
        weight, fade = jnp.exp(score - maximum), jnp.exp(before - maximum)
        self.maximum_ref[k] = maximum
        self.total_ref[k] = self.total_ref[k] * fade + jnp.sum(weight, axis=1, keepdims=True)
        self.weighted_ref[k] = self.weighted_ref[k] * fade + weigh(weight)

    def finish(self, context_ref: Any, plan: _Plan) -> None:
        """Writes the context of every head."""
        for k in range(plan.groups):
            context = self.weighted_ref[k] / self.total_ref[k]
            for b in range(plan.rows):
                rows = context[b * plan.padded : b * plan.padded + plan.shared]
                context_ref[b, k * plan.shared : (k + 1) * plan.shared] = rows.astype(context_ref.dtype)


def _seen(position: jax.Array, block: jax.Array, plan: _Plan) -> jax.Array:
    """Which slots of a block hold a token that the new one at `position` may look at, itself excepted."""
    slot = block * plan.block + jax.lax.broadcasted_iota(jnp.int32, (plan.padded, plan.block), 1)
    age = jax.lax.rem(position, plan.slots) - slot
    age = jnp.where(age < 0, age + plan.slots, age)
    oldest = jnp.minimum(position, plan.window - 1) if 0 < plan.window < plan.slots else position
    return (age > 0) & (age <= oldest)


def _extend_by_own(softmax: _Softmax, position_ref: Any, key_ref: Any, value_ref: Any, plan: _Plan) -> None:
    """Every row of the chunk against a block of its own cache."""
    first, block = pl.program_id(0) * plan.rows, pl.program_id(1) - plan.prompt_blocks
    seen = [_seen(position_ref[first + b], block, plan) for b in range(plan.rows)]
    for k in range(plan.groups):
        score = [
            _dot(softmax.query_ref[k, plan.row(b)], key_ref[b, k], ROWS_BY_ROWS)  #
            for b in range(plan.rows)
        ]

        def weigh(weight: jax.Array, k: int = k) -> jax.Array:
            rows = range(plan.rows)
            return jnp.concatenate([_dot(weight[plan.row(b)], value_ref[b, k], ROWS_BY_COLUMNS) for b in rows])

        softmax.extend(k, _capped(jnp.concatenate(score), plan), jnp.concatenate(seen), weigh)


def _extend_by_prompt(softmax: _Softmax, length: jax.Array, key_ref: Any, value_ref: Any, plan: _Plan) -> None:
    """All rows of the chunk against a block of the prompt that they share."""
    shape = (plan.rows * plan.padded, plan.prompt_block)
    token = pl.program_id(1) * plan.prompt_block + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    for k in range(plan.groups):
        score = _dot(softmax.query_ref[k], key_ref[k], ROWS_BY_ROWS)
        weigh = functools.partial(lambda weight, k: _dot(weight, value_ref[k], ROWS_BY_COLUMNS), k=k)
        softmax.extend(k, _capped(score, plan), token < length, weigh)


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Sends the slots around each new token back to one cache."""

    cache_ref: Any
    tile_ref: Any
    semaphore: Any

    def copy(self, layer: jax.Array, b: int, k: int, slot: jax.Array, plan: _Plan) -> Any:
        """The transfer of head k of row b."""
        start = pl.multiple_of(slot // TILE * TILE, TILE)
        row = pl.program_id(0) * plan.rows + b
        target = self.cache_ref.at[layer, row, k, pl.ds(start, TILE)]
        return pltpu.make_async_copy(self.tile_ref.at[b, k], target, self.semaphore)

    def send(self, layer: jax.Array, b: int, slot: jax.Array, new_ref: Any, block_ref: Any, plan: _Plan) -> None:
        """Merges row b's new token into its tile and starts to write it."""
        start = pl.multiple_of(jax.lax.rem(slot, plan.block) // TILE * TILE, TILE)
        for k in range(plan.groups):
            tile = block_ref[b, k, pl.ds(start, TILE)].astype(jnp.float32)
            here = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 0) == jax.lax.rem(slot, TILE)
            tile = jnp.where(here, new_ref[b, k : k + 1].astype(jnp.float32), tile)
            self.tile_ref[b, k] = tile.astype(self.tile_ref.dtype)
            self.copy(layer, b, k, slot, plan).start()


def _kernel(
    layer_ref: Any, last_ref: Any, position_ref: Any, length_ref: Any,
    query_ref: Any, new_key_ref: Any, new_value_ref: Any, key_ref: Any, value_ref: Any, *refs: Any, plan: _Plan,
) -> None:  # fmt: skip
    prompt_refs, refs = (refs[:2], refs[2:]) if plan.prompt_blocks else ((), refs)
    context_ref, key_cache_ref, value_cache_ref, key_tile_ref, value_tile_ref, semaphore, *state_refs = refs
    if plan.known_position is not None:
        position_ref, last_ref = _Known(plan.known_position), _Known(_last_block(plan.known_position, plan))
    softmax = _Softmax(*state_refs)
    writers = (
        (_Writer(key_cache_ref, key_tile_ref, semaphore.at[0]), new_key_ref, key_ref),
        (_Writer(value_cache_ref, value_tile_ref, semaphore.at[1]), new_value_ref, value_ref),
    )
    chunk, step = pl.program_id(0), pl.program_id(1)
    block = step - plan.prompt_blocks
    slots = [jax.lax.rem(position_ref[chunk * plan.rows + b], plan.slots) for b in range(plan.rows)]

    @pl.when(step == 0)
    def _() -> None:
        softmax.start(query_ref, new_key_ref, new_value_ref, plan)

    if plan.prompt_blocks:
        length = plan.known_length if plan.known_length is not None else length_ref[chunk]

        @pl.when((step < plan.prompt_blocks) & (step * plan.prompt_block < length))
        def _() -> None:
            _extend_by_prompt(softmax, length, *prompt_refs, plan)

    @pl.when((block >= 0) & (block <= last_ref[chunk]))
    def _() -> None:
        for b, slot in enumerate(slots):

            @pl.when(slot // plan.block == block)
            def _(b: int = b, slot: jax.Array = slot) -> None:
                for writer, new_ref, block_ref in writers:
                    writer.send(layer_ref[0], b, slot, new_ref, block_ref, plan)

        _extend_by_own(softmax, position_ref, key_ref, value_ref, plan)

    @pl.when(step == plan.steps - 1)
    def _() -> None:
        softmax.finish(context_ref, plan)
        for b, slot in enumerate(slots):
            for writer, _, _ in writers:
                for k in range(plan.groups):
                    writer.copy(layer_ref[0], b, k, slot, plan).wait()


def _last_block(position: Any, plan: _Plan) -> Any:
    """The last block of slots in use, the new token's included."""
    return jnp.minimum(position, plan.slots - 1) // plan.block


def _divisor(size: int, most: int) -> int:
    """The largest block of whole tiles, at most `most`, that divides `size`."""
    return max(block for block in range(TILE, max(most, TILE) + 1, TILE) if size % block == 0)


def _specs(plan: _Plan, width: int, dtype: Any) -> tuple[list[pl.BlockSpec], list[pl.BlockSpec], list[Any]]:
    """Blocks of the operands and results, and the scratch."""
    heads = plan.groups * plan.shared

    def own_block(chunk: jax.Array, step: jax.Array, layer: Any, last: Any, *_: Any) -> Any:
        used = last[chunk] if plan.known_position is None else _last_block(plan.known_position, plan)
        return layer[0], chunk, 0, jnp.clip(step - plan.prompt_blocks, 0, used), 0

    def prompt_block(chunk: jax.Array, step: jax.Array, layer: Any, last: Any, position: Any, length: Any) -> Any:
        tokens = length[chunk] if plan.known_length is None else plan.known_length
        return layer[0], chunk, 0, jnp.minimum(step, jnp.maximum(tokens - 1, 0) // plan.prompt_block), 0

    def by_chunk(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((plan.rows, size, width), lambda chunk, *_: (chunk, 0, 0))

    own = pl.BlockSpec((None, plan.rows, plan.groups, plan.block, width), own_block)
    prompt = pl.BlockSpec((None, None, plan.groups, plan.prompt_block, width), prompt_block)
    operands = [by_chunk(heads), by_chunk(plan.groups), by_chunk(plan.groups), own, own]
    whole = pl.BlockSpec(memory_space=pl.ANY)
    stacked = (plan.groups, plan.rows * plan.padded)
    tile = pltpu.VMEM((plan.rows, plan.groups, TILE, width), dtype)
    scratch = [tile, tile, pltpu.SemaphoreType.DMA((2,))]
    scratch += [pltpu.VMEM((*stacked, size), jnp.float32) for size in (width, 1, 1, width)]
    return operands + [prompt, prompt] * bool(plan.prompt_blocks), [by_chunk(heads), whole, whole], scratch


def _call(
    query_BNH: jax.Array, new: Any, own: Any, layer: jax.Array, position_B: jax.Array, *,
    prompt: tuple[jax.Array, ...], length: jax.Array, plan: _Plan, name: str, interpret: Any,
) -> tuple[jax.Array, Pair]:  # fmt: skip
    batch, _, width = query_BNH.shape
    chunks = batch // plan.rows
    last = jnp.max(_last_block(position_B, plan).reshape(chunks, plan.rows), axis=1)
    operands, results, scratch = _specs(plan, width, own[0].dtype)
    slots_inside = [cache.swapaxes(2, 3) for cache in (*own, *prompt)]
    context_BNH, *written = pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(chunks, plan.steps),
            in_specs=operands,
            out_specs=results,
            scratch_shapes=scratch,
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query_BNH, *slots_inside[:2])],
        input_output_aliases={7: 1, 8: 2},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=interpret,
        name=name,
    )(jnp.reshape(layer, (1,)), last, position_B, length, query_BNH, *new, *slots_inside)
    return context_BNH, (written[0].swapaxes(2, 3), written[1].swapaxes(2, 3))


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
    known_position: int | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "B N H"], Pair]:
    """Context of each row's new token, and the rings that hold it; see reference.append_attention.

    `known_position` says when compiling that every row stands there: a static profile reads prefetched data as zeros.
    """
    batch, heads, width = query_BNH.shape
    slots, groups = ring[0].shape[2:4]
    slot_bytes = groups * width * ring[0].dtype.itemsize
    rows = math.gcd(batch, CHUNK_ROWS)
    while rows > 1 and rows * min(slots, 512) * slot_bytes > CHUNK_BYTES:
        rows //= 2
    plan = _Plan(
        rows=rows, slots=slots, block=_divisor(slots, min(slots, CHUNK_BYTES // (rows * slot_bytes))),
        prompt_block=0, prompt_blocks=0, groups=groups, shared=heads // groups,
        scale=scale, window=window, soft_cap=soft_cap, known_position=known_position, known_length=None,
    )  # fmt: skip
    return _call(
        query_BNH, new, ring, layer, position_B, prompt=(), length=jnp.zeros((1,), jnp.int32), plan=plan,
        name="append_attention", interpret=interpret,
    )  # fmt: skip


def grouped(
    query_BNH: Float[Array, "B N H"],
    new: tuple[Float[Array, "B K H"], Float[Array, "B K H"]],
    own: Pair,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
    *,
    prompt: tuple[Float[Array, "L P T K H"], Float[Array, "L P T K H"]],
    length_P: Int[Array, "P"],
    scale: float,
    soft_cap: float,
    known: tuple[int, int] | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "B N H"], Pair]:
    """Context of each row's new token over its prompt and its own tokens; see reference.grouped.

    `known`: the position of every row and the length of every prompt, as in `append_attention`.
    """
    batch, heads, width = query_BNH.shape
    slots, groups = own[0].shape[2:4]
    tokens, rows = prompt[0].shape[2], batch // prompt[0].shape[1]
    slot_bytes = groups * width * own[0].dtype.itemsize
    prompt_block = _divisor(tokens, min(tokens, 512))
    plan = _Plan(
        rows=rows, slots=slots, block=_divisor(slots, min(slots, CHUNK_BYTES // (rows * slot_bytes))),
        prompt_block=prompt_block, prompt_blocks=tokens // prompt_block, groups=groups, shared=heads // groups,
        scale=scale, window=0, soft_cap=soft_cap,
        known_position=known[0] if known else None, known_length=known[1] if known else None,
    )  # fmt: skip
    return _call(
        query_BNH, new, own, layer, position_B, prompt=prompt, length=length_P, plan=plan,
        name="grouped_decode", interpret=interpret,
    )  # fmt: skip
