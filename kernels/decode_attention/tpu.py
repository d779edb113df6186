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
STEP_BYTES = 2**19  # of keys (and of values) read in one step
STEP_ROWS = 2
DEPTH = 4  # steps whose blocks are on their way or in use
VMEM_BYTES = 64 * 2**20
BY_ROWS = (((1,), (1,)), ((), ()))
BY_COLUMNS = (((1,), (0,)), ((), ()))

Pair = tuple[Float[Array, "L B S K H"], Float[Array, "L B S K H"]]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is fixed when the kernel is compiled."""

    groups: int
    parts: int
    rows: int
    slots: int
    block: int
    tokens: int
    prompt_block: int
    depth: int
    kv_heads: int
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
    def own_blocks(self) -> int:
        """Blocks of a row's own cache."""
        return self.slots // self.block

    @property
    def prompt_blocks(self) -> int:
        """Blocks of a prompt; 0 where rows share none."""
        return self.tokens // self.prompt_block if self.tokens else 0

    @property
    def steps(self) -> int:
        """Steps of a group, those of the prompt first."""
        return self.prompt_blocks + self.parts * self.own_blocks

    def stacked(self, b: int) -> slice:
        """Where row b of a part is in what is stacked for the part."""
        return slice(b * self.padded, (b + 1) * self.padded)


class _Known:
    """Stands for prefetched numbers that are all the same and known when compiling."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __getitem__(self, _: Any) -> jax.Array:
        return jnp.int32(self.value)


class _Step:
    """What happens at one step of the grid: `of_prompt` and `of_own` tell whether a block is read, and of what."""

    def __init__(self, number: Any, position_ref: Any, length_ref: Any, plan: _Plan) -> None:
        self.buffer = jax.lax.rem(number, plan.depth)
        self.group, self.place = jax.lax.div(number, plan.steps), jax.lax.rem(number, plan.steps)
        own = self.place - plan.prompt_blocks
        part = jax.lax.div(jnp.maximum(own, 0), plan.own_blocks)
        self.part, self.block = part, own - part * plan.own_blocks
        self.chunk = self.group * plan.parts + part
        self.row = self.chunk * plan.rows
        newest = functools.reduce(jnp.maximum, [position_ref[self.row + b] for b in range(plan.rows)])
        self.of_own = (own >= 0) & (self.block * plan.block <= jnp.minimum(newest, plan.slots - 1))
        self.length = length_ref[self.group] if plan.tokens else None
        self.of_prompt = (own < 0) & (self.place * plan.prompt_block < self.length) if plan.tokens else None


def _dot(left: jax.Array, right: jax.Array, dimensions: Any) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if right.dtype == jnp.float32 else None
    left = left.astype(right.dtype)
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _capped(score: jax.Array, plan: _Plan) -> jax.Array:
    score = score * plan.scale
    return plan.soft_cap * jnp.tanh(score / plan.soft_cap) if plan.soft_cap else score


@dataclasses.dataclass(frozen=True)
class _Softmax:
    """Refs of a group's running softmax, [K, G * J', ...]."""

    query_ref: Any
    maximum_ref: Any
    total_ref: Any
    weighted_ref: Any

    def start(self, part: Any, step: _Step, operands: tuple[Any, Any, Any], plan: _Plan) -> None:
        """The softmax over the new token alone, for the rows of a part."""
        query_ref, new_key_ref, new_value_ref = operands
        for b in range(plan.rows):
            row = (step.group * plan.parts + part) * plan.rows + b
            first = pl.multiple_of((part * plan.rows + b) * plan.padded, SUBLANES)
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
        score = jnp.where(visible, score, MASKED)
        before = self.maximum_ref[at]
        maximum = jnp.maximum(before, jnp.max(score, axis=1, keepdims=True))
        weight, fade = jnp.exp(score - maximum), jnp.exp(before - maximum)
        self.maximum_ref[at] = maximum
        self.total_ref[at] = self.total_ref[at] * fade + jnp.sum(weight, axis=1, keepdims=True)
        self.weighted_ref[at] = self.weighted_ref[at] * fade + weigh(weight)

    def finish(self, step: _Step, context_ref: Any, plan: _Plan) -> None:
        """Writes the context of a part."""
        for k in range(plan.kv_heads):
            context = self.weighted_ref[k, _part(step, plan)] / self.total_ref[k, _part(step, plan)]
            for b in range(plan.rows):
                heads = context[b * plan.padded : b * plan.padded + plan.shared].astype(context_ref.dtype)
                context_ref[step.row + b, k * plan.shared : (k + 1) * plan.shared] = heads


def _part(step: _Step, plan: _Plan) -> Any:
    """Where the rows of a part are in what is stacked for the group."""
    size = plan.rows * plan.padded
    return pl.ds(pl.multiple_of(step.part * size, SUBLANES), size)


def _seen(position: jax.Array, block: jax.Array, plan: _Plan) -> jax.Array:
    """Which slots of a block hold a token that the new one at `position` may look at, itself excepted."""
    slot = block * plan.block + jax.lax.broadcasted_iota(jnp.int32, (plan.padded, plan.block), 1)
    age = jax.lax.rem(position, plan.slots) - slot
    age = jnp.where(age < 0, age + plan.slots, age)
    oldest = jnp.minimum(position, plan.window - 1) if 0 < plan.window < plan.slots else position
    return (age > 0) & (age <= oldest)


def _extend_by_own(softmax: _Softmax, step: _Step, position_ref: Any, blocks: tuple[Any, Any], plan: _Plan) -> None:
    """Every row of the part against a block of its own cache."""
    key_ref, value_ref = blocks
    rows = range(plan.rows)
    seen = jnp.concatenate([_seen(position_ref[step.row + b], step.block, plan) for b in rows])
    for k in range(plan.kv_heads):
        query = softmax.query_ref[k, _part(step, plan)]
        score = jnp.concatenate([_dot(query[plan.stacked(b)], key_ref[step.buffer, b, k], BY_ROWS) for b in rows])

        def weigh(weight: jax.Array, k: int = k) -> jax.Array:
            parts = [_dot(weight[plan.stacked(b)], value_ref[step.buffer, b, k], BY_COLUMNS) for b in rows]
            return jnp.concatenate(parts)

        softmax.extend((k, _part(step, plan)), _capped(score, plan), seen, weigh)


def _extend_by_prompt(softmax: _Softmax, step: _Step, blocks: tuple[Any, Any], plan: _Plan) -> None:
    """All rows of the group against a block of the prompt that they share."""
    key_ref, value_ref = blocks
    shape = (plan.parts * plan.rows * plan.padded, plan.prompt_block)
    token = step.place * plan.prompt_block + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    for k in range(plan.kv_heads):
        score = _dot(softmax.query_ref[k], key_ref[step.buffer, k], BY_ROWS)
        weigh = functools.partial(lambda weight, k: _dot(weight, value_ref[step.buffer, k], BY_COLUMNS), k=k)
        softmax.extend(k, _capped(score, plan), token < step.length, weigh)


@dataclasses.dataclass(frozen=True)
class _Cache:
    """One cache in HBM, the buffers that blocks of it are read into and the tiles that are written to it."""

    source_ref: Any
    prompt_ref: Any
    target_ref: Any
    block_ref: Any
    prompt_block_ref: Any
    tile_ref: Any
    read_semaphore: Any
    write_semaphore: Any

    def prompt_read(self, layer: jax.Array, step: _Step, plan: _Plan) -> Any:
        """The transfer of a prompt's block."""
        source = self.prompt_ref.at[layer, step.group, :, pl.ds(step.place * plan.prompt_block, plan.prompt_block)]
        buffer = step.buffer
        return pltpu.make_async_copy(source, self.prompt_block_ref.at[buffer], self.read_semaphore.at[buffer])

    def read(self, layer: jax.Array, step: _Step, b: int, plan: _Plan) -> Any:
        """The transfer of row b's block."""
        source = self.source_ref.at[layer, step.row + b, :, pl.ds(step.block * plan.block, plan.block)]
        buffer = step.buffer
        return pltpu.make_async_copy(source, self.block_ref.at[buffer, b], self.read_semaphore.at[buffer])

    def write(self, layer: jax.Array, chunk: jax.Array, b: int, position_ref: Any, plan: _Plan) -> Any:
        """The transfer of the tile around row b's new token."""
        row, half = chunk * plan.rows + b, jax.lax.rem(chunk, 2)
        slot = jax.lax.rem(position_ref[row], plan.slots)
        start = pl.multiple_of(slot - jax.lax.rem(slot, TILE), TILE)
        target = self.target_ref.at[layer, row, :, pl.ds(start, TILE)]
        return pltpu.make_async_copy(self.tile_ref.at[half, b], target, self.write_semaphore.at[half])

    def merge(self, new_ref: Any, step: _Step, b: int, slot: jax.Array, plan: _Plan) -> None:
        """Puts row b's new token among its neighbours from the block."""
        start = pl.multiple_of(jax.lax.rem(slot - jax.lax.rem(slot, TILE), plan.block), TILE)
        for k in range(plan.kv_heads):
            tile = self.block_ref[step.buffer, b, k, pl.ds(start, TILE)].astype(jnp.float32)
            here = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 0) == jax.lax.rem(slot, TILE)
            tile = jnp.where(here, new_ref[step.row + b, k : k + 1].astype(jnp.float32), tile)
            self.tile_ref[jax.lax.rem(step.chunk, 2), b, k] = tile.astype(self.tile_ref.dtype)


def _transfer(step: _Step, layer: jax.Array, caches: tuple[_Cache, _Cache], plan: _Plan, act: Callable[[Any], None]) -> None:
    """Starts, or waits for, what a step reads."""
    if plan.tokens:

        @pl.when(step.of_prompt)
        def _() -> None:
            for cache in caches:
                act(cache.prompt_read(layer, step, plan))

    @pl.when(step.of_own)
    def _() -> None:
        for b in range(plan.rows):
            for cache in caches:
                act(cache.read(layer, step, b, plan))


def _kernel(
    layer_ref: Any, position_ref: Any, length_ref: Any,
    query_ref: Any, new_key_ref: Any, new_value_ref: Any, *refs: Any, plan: _Plan,
) -> None:  # fmt: skip
    reads, refs = refs[: 4 if plan.tokens else 2], refs[4 if plan.tokens else 2 :]
    context_ref, *refs = refs
    writes, blocks, tiles, semaphores, state, prompt_blocks = (
        refs[:2], refs[2:4], refs[4:6], refs[6:8], refs[8:12], refs[12:] or (None, None),
    )  # fmt: skip
    if plan.known_position is not None:
        position_ref, length_ref = _Known(plan.known_position), _Known(plan.known_length or 0)
    caches = tuple(
        _Cache(reads[i], reads[2 + i] if plan.tokens else None, writes[i], blocks[i], prompt_blocks[i], tiles[i],
               semaphores[0], semaphores[1].at[i])
        for i in range(2)
    )  # fmt: skip
    softmax, layer, number = _Softmax(*state), layer_ref[0], pl.program_id(0)
    step = _Step(number, position_ref, length_ref, plan)
    last = plan.groups * plan.steps - 1

    def fetch(number: Any) -> None:
        _transfer(_Step(number, position_ref, length_ref, plan), layer, caches, plan, lambda copy: copy.start())

    @pl.when(number == 0)
    def _() -> None:
        for ahead in range(min(plan.depth - 1, last + 1)):
            fetch(jnp.int32(ahead))

    @pl.when(number + plan.depth - 1 <= last)
    def _() -> None:
        fetch(number + plan.depth - 1)

    @pl.when(step.place == 0)
    def _() -> None:
        operands = (query_ref, new_key_ref, new_value_ref)
        pl.loop(0, plan.parts)(lambda part: softmax.start(part, step, operands, plan))

    _transfer(step, layer, caches, plan, lambda copy: copy.wait())
    if plan.tokens:

        @pl.when(step.of_prompt)
        def _() -> None:
            _extend_by_prompt(softmax, step, prompt_blocks, plan)

    @pl.when(step.of_own)
    def _() -> None:
        for b in range(plan.rows):
            slot = jax.lax.rem(position_ref[step.row + b], plan.slots)

            @pl.when(jax.lax.div(slot, plan.block) == step.block)
            def _(b: int = b, slot: jax.Array = slot) -> None:
                for cache, new_ref in zip(caches, (new_key_ref, new_value_ref), strict=True):
                    cache.merge(new_ref, step, b, slot, plan)
                    cache.write(layer, step.chunk, b, position_ref, plan).start()

        _extend_by_own(softmax, step, position_ref, tuple(blocks), plan)

    def wait_for_writes(chunk: jax.Array) -> None:
        for b in range(plan.rows):
            for cache in caches:
                cache.write(layer, chunk, b, position_ref, plan).wait()

    @pl.when(step.block == plan.own_blocks - 1)
    def _() -> None:
        softmax.finish(step, context_ref, plan)
        pl.when(step.chunk > 0)(lambda: wait_for_writes(step.chunk - 1))
        pl.when(number == last)(lambda: wait_for_writes(step.chunk))


def _divisor(size: int, most: int, least: int = TILE) -> int:
    """The largest multiple of `least`, at most `most`, that divides `size`."""
    return max(block for block in range(least, max(most, least) + 1, least) if size % block == 0)


def _call(
    query_BNH: jax.Array, new: Any, own: Any, layer: jax.Array, position_B: jax.Array, *,
    prompt: tuple[jax.Array, ...], length: jax.Array, plan: _Plan, name: str, interpret: Any,
) -> tuple[jax.Array, Pair]:  # fmt: skip
    width, dtype = query_BNH.shape[2], own[0].dtype
    slots_inside = [cache.swapaxes(2, 3) for cache in (*own, *prompt)]
    whole, anywhere = pl.BlockSpec(memory_space=pltpu.VMEM), pl.BlockSpec(memory_space=pl.ANY)
    block = pltpu.VMEM((plan.depth, plan.rows, plan.kv_heads, plan.block, width), dtype)
    tile = pltpu.VMEM((2, plan.rows, plan.kv_heads, TILE, width), dtype)
    prompt_block = pltpu.VMEM((plan.depth, plan.kv_heads, plan.prompt_block, width), dtype)
    semaphores = [pltpu.SemaphoreType.DMA((plan.depth,)), pltpu.SemaphoreType.DMA((2, 2))]
    stacked = (plan.kv_heads, plan.parts * plan.rows * plan.padded)
    state = [pltpu.VMEM((*stacked, size), jnp.float32) for size in (width, 1, 1, width)]
    context_BNH, *written = pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(plan.groups * plan.steps,),
            in_specs=[whole] * 3 + [anywhere] * len(slots_inside),
            out_specs=[whole, anywhere, anywhere],
            scratch_shapes=[block] * 2 + [tile] * 2 + semaphores + state + [prompt_block] * len(prompt),
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query_BNH, *slots_inside[:2])],
        input_output_aliases={6: 1, 7: 2},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES),
        interpret=interpret,
        name=name,
    )(jnp.reshape(layer, (1,)), position_B, length, query_BNH, *new, *slots_inside)
    return context_BNH, (written[0].swapaxes(2, 3), written[1].swapaxes(2, 3))


def _plan(query_BNH: jax.Array, cache_LBSKH: jax.Array, groups: int, *, tokens: int, **settings: Any) -> _Plan:
    """Sizes of the blocks; without a prompt every step's rows are a group of their own."""
    batch, heads, width = query_BNH.shape
    slots, kv_heads = cache_LBSKH.shape[2:4]
    rows = math.gcd(batch // groups if tokens else batch, STEP_ROWS)
    most = STEP_BYTES // (kv_heads * width * cache_LBSKH.dtype.itemsize)
    while rows > 1 and rows * min(slots, 256) > most:
        rows //= 2
    return _Plan(
        groups=groups if tokens else batch // rows, parts=batch // groups // rows if tokens else 1, rows=rows,
        slots=slots, block=_divisor(slots, min(slots, most // rows)),
        tokens=tokens, prompt_block=_divisor(tokens, min(tokens, most)) if tokens else TILE,
        depth=DEPTH, kv_heads=kv_heads, shared=heads // kv_heads, **settings,
    )  # fmt: skip


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
    plan = _plan(
        query_BNH, ring[0], ring[0].shape[1], tokens=0, scale=scale, window=window, soft_cap=soft_cap,
        known_position=known_position, known_length=None,
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
    plan = _plan(
        query_BNH, own[0], prompt[0].shape[1], tokens=prompt[0].shape[2], scale=scale, window=0, soft_cap=soft_cap,
        known_position=known[0] if known else None, known_length=known[1] if known else None,
    )  # fmt: skip
    return _call(
        query_BNH, new, own, layer, position_B, prompt=prompt, length=length_P, plan=plan,
        name="grouped_decode", interpret=interpret,
    )  # fmt: skip
