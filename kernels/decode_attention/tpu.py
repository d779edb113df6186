"""Attention of one new token per row against its cache, as a TPU kernel that also writes the token into the cache.

The caches are stacked over layers, [L, B, S, K, H], and stay where they are: the layer to use is data, prefetched into
scalar memory, and only its blocks are read.  (A `dynamic_index` outside would copy the layer out of the stack and a
`dynamic_update` would copy it back.)  The kernel sees a cache as [L, B, K, S, H], slots on sublanes, so that each block
feeds the matrix unit as it lies, and new tokens as [K, B, H], as a projection leaves them.  The changes of axes outside
are bitcasts: the compiler gives a cache that is carried through a loop the kernel's layout.  Only one that enters or
leaves a program is copied, once, and not if K = 1.

The grid has one axis, walked in order: first all rows' own caches, a chunk of up to 16 rows at a time, then prompts.

  operand                        block                                  at
  query, context, new key/value  whole, in VMEM
  own key and value              [rows, K, block, H] of [L,B,K,S,H]     layer, chunk of rows, s; copied by hand
  prompt key and value           [K, prompt block, H] of [L,P,K,T,H]    layer, p, t up to the last in use

Own blocks are copied row by row (`transfers`), each row as far as it has come, those of the next step while these are
looked at.  Of a prompt, blocks beyond its length are not read (the index does not change), and nothing if no row looks
at it.  Kept in VMEM, of a chunk or, if prompts follow, of all rows: the queries in float32, and the softmax so far
(`softmax`).  It starts from the new token itself, so it is never empty, and the token's slot, which may hold a position
that the window has left behind, is masked.

Prompts: any row may look at any of them.  Rows are put in the order of their prompts outside (`groups`).  At a block of
a prompt, the rows that look at it are taken up 8 at a time, wherever they stand in VMEM, go through the matrix unit
together, and are put back: a prompt is read once, however many rows share it.  The last 8 may reach into the rows of
another prompt, which are masked and put back as they were.  Own part and prompt meet in the running softmax, which is
the combination by log-sum-exp.

Writing: a slot is narrower than what memory can address, so the 16 slots around it are taken from the block at hand,
merged with the new token and sent back by a transfer that is waited for one chunk later.  Nothing else is written.

8-bit caches (`quantised`) are two arrays each, integers and scales [L, B, K, S].  Scores and weights are multiplied by
the scales, not keys and values; the new token is rounded here, and looked at as it will be read.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from thinkfirst.kernels.decode_attention import groups, plans, quantised, reference, steps, transfers
from thinkfirst.kernels.decode_attention import softmax as running

VMEM_BYTES = 64 * 2**20
INTERPRET = pltpu.InterpretParams(detect_races=True)  # fills memory with NaN, prints any race


@dataclasses.dataclass(frozen=True)
class _Cache:
    """Keys or values: what moves each of its arrays, and the new tokens, in VMEM."""

    readers: tuple[transfers.Reader, ...]
    writers: tuple[transfers.Writer, ...]

    def take(self, fresh_ref: Any) -> None:
        """Puts down the new tokens in float32, whose rows can be addressed one by one."""
        fresh = fresh_ref[...].astype(jnp.float32)
        if len(self.writers) == 1:
            self.writers[0].new_ref[...] = fresh
        else:
            values, scale = quantised.rounded(fresh)
            self.writers[0].new_ref[...], self.writers[1].new_ref[...] = values, scale[..., None]

    def token(self, k: int, row: Any) -> jax.Array:
        """The new token of a row, as it will be read from the cache, [1, H]."""
        return math.prod(writer.new_ref[k, pl.ds(row, 1)] for writer in self.writers)

    def block(self, turn: Any, b: int) -> running.Block:
        """What was read for row b of the chunk."""
        return running.Block(*(reader.buffer_ref.at[turn, b] for reader in self.readers))


def _start(
    softmax: running.Softmax, step: steps.Step, query_ref: Any, caches: tuple[_Cache, ...], plan: plans.Plan
) -> None:
    """The softmax over the new token alone, for the rows of a chunk."""
    for b in range(plan.rows):
        row = step.row + b
        at = running.place(_kept(step, plan) + b, plan)
        key, value = (functools.partial(cache.token, row=row) for cache in caches)
        softmax.start(at, query_ref[row].astype(jnp.float32), (key, value), plan)


def _kept(step: steps.Step, plan: plans.Plan) -> Any:
    """At which place the softmax of the first row of the chunk is kept."""
    return step.row if plan.prompts else 0


def _seen(position: jax.Array, block: jax.Array, plan: plans.Plan) -> jax.Array:
    """Which slots of a block hold a token that the new one at `position` may look at, itself excepted."""
    slot = block * plan.block + jax.lax.broadcasted_iota(jnp.int32, (plan.padded, plan.block), 1)
    age = jax.lax.rem(position, plan.slots) - slot
    age = jnp.where(age < 0, age + plan.slots, age)
    oldest = jnp.minimum(position, plan.window - 1) if 0 < plan.window < plan.slots else position
    return (age > 0) & (age <= oldest)


def _extend_by_own(
    softmax: running.Softmax, step: steps.Step, data: steps.Data, caches: tuple[_Cache, ...], plan: plans.Plan
) -> None:
    """Every row of the chunk against a block of its own cache."""
    keys, values = ([cache.block(step.turn, b) for b in range(plan.rows)] for cache in caches)
    chunk = [running.place(_kept(step, plan), plan, count=plan.rows)]
    seen = jnp.concatenate([_seen(data.position[step.row + b], step.block, plan) for b in range(plan.rows)])
    for sheet in range(plan.sheets):
        query = softmax.queries(sheet, chunk)
        score = [key.scores(query[plan.stacked(b)], sheet, plan) for b, key in enumerate(keys)]

        def weigh(weight: jax.Array, sheet: int = sheet) -> jax.Array:
            parts = [value.weighted(weight[plan.stacked(b)], sheet, plan) for b, value in enumerate(values)]
            return jnp.concatenate(parts)

        softmax.extend(sheet, chunk, (jnp.concatenate(score), seen), weigh)


def _in_prompt(step: steps.Step, position: jax.Array, shares: jax.Array, plan: plans.Plan) -> jax.Array:
    """Which tokens of a block of the prompt a row at `position` may look at, if it `shares` it."""
    token = jax.lax.broadcasted_iota(jnp.int32, (plan.padded, plan.prompt_block), 1)
    token += step.tokens * plan.prompt_block
    inside = token < jnp.where(shares, step.length, 0)
    return inside & (token > step.length + position - plan.window) if plan.window else inside


def _extend_by_prompt(
    softmax: running.Softmax, step: steps.Step, data: steps.Data, refs: tuple[Any, ...], plan: plans.Plan
) -> None:
    """All rows that share a prompt against a block of it, and their contexts once it is the last."""
    key, value, context_ref = refs

    def extend(turn: jax.Array, _: None) -> None:
        begin = step.begin + turn * plan.together
        start = jnp.minimum(begin, plan.batch - plan.together)
        rows = [data.order[start + b] for b in range(plan.together)]
        shares = [(start + b >= begin) & (start + b < step.end) for b in range(plan.together)]
        places = [running.place(row, plan) for row in rows]
        seen = [_in_prompt(step, data.position[row], mine, plan) for row, mine in zip(rows, shares, strict=True)]
        for sheet in range(plan.sheets):
            score = key.scores(softmax.queries(sheet, places), sheet, plan)
            weigh = functools.partial(value.weighted, sheet=sheet, plan=plan)
            softmax.extend(sheet, places, (score, jnp.concatenate(seen)), weigh)
        pl.when(step.ends_prompt)(lambda: softmax.finish(context_ref, rows, places, plan))

    turns = jax.lax.div(step.end - step.begin + plan.together - 1, plan.together)
    jax.lax.fori_loop(0, turns, extend, None)


def _attend_to_own(
    softmax: running.Softmax, data: steps.Data, refs: tuple[Any, ...], caches: tuple[_Cache, ...], plan: plans.Plan
) -> None:
    """A step over the rows' own caches; the blocks of the next are asked for before those of this are waited for."""
    query_ref, context_ref, layer = refs
    place = pl.program_id(0)
    step, after = steps.Step(place, data, plan), steps.Step(place + 1, data, plan)
    readers = [reader for cache in caches for reader in cache.readers]
    writers = [writer for cache in caches for writer in cache.writers]

    def ask(which: steps.Step) -> None:
        for reader in readers:
            reader.start(layer, which, plan)

    pl.when(place == 0)(lambda: ask(step))
    pl.when(after.in_own)(lambda: ask(after))
    pl.when(step.block == 0)(lambda: _start(softmax, step, query_ref, caches, plan))
    for reader in readers:
        reader.wait(layer, step, plan)

    @pl.when(step.of_own(plan))
    def _() -> None:
        for b in range(plan.rows):
            slot = jax.lax.rem(data.position[step.row + b], plan.slots)

            @pl.when(jax.lax.div(slot, plan.block) == step.block)
            def _(b: int = b, slot: jax.Array = slot) -> None:
                for writer in writers:
                    writer.send(layer, step, b, slot, plan)

        _extend_by_own(softmax, step, data, caches, plan)

    def wait_for_writes(chunk: jax.Array) -> None:
        for b in range(plan.rows):
            slot = jax.lax.rem(data.position[chunk * plan.rows + b], plan.slots)
            for writer in writers:
                writer.wait(layer, chunk, b, slot, plan)

    @pl.when(step.block == plan.own_blocks - 1)
    def _() -> None:
        rows = [step.row + b for b in range(plan.rows)]
        places = [running.place(_kept(step, plan) + b, plan) for b in range(plan.rows)]
        softmax.finish(context_ref, rows, places, plan)
        pl.when(step.chunk > 0)(lambda: wait_for_writes(step.chunk - 1))
        pl.when(step.chunk == plan.chunks - 1)(lambda: wait_for_writes(step.chunk))


def _kernel(*refs: Any, plan: plans.Plan, arrays: int) -> None:
    """`arrays`: 1 for keys and 1 for values, or 2 and 2 where they have scales."""
    sizes = (plan.prefetched, 3, 2 * arrays, 2 * arrays if plan.prompts else 0, 1, *[2 * arrays] * 4, 2, 4)
    prefetched, operands, _given, prompt, context, own, new, buffers, tiles, semaphores, state = _split(refs, sizes)
    query_ref, *fresh_refs = operands
    data, softmax = steps.Data.of(prefetched, plan), running.Softmax(*state)
    readers = [transfers.Reader(own[i], buffers[i], semaphores[0].at[i]) for i in range(len(own))]
    writers = [transfers.Writer(own[i], buffers[i], new[i], tiles[i], semaphores[1].at[i]) for i in range(len(own))]
    halves = (slice(arrays), slice(arrays, None))
    caches = tuple(_Cache(tuple(readers[half]), tuple(writers[half])) for half in halves)

    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        for cache, fresh_ref in zip(caches, fresh_refs, strict=True):
            cache.take(fresh_ref)

    step = steps.Step(pl.program_id(0), data, plan)

    @pl.when(step.in_own)
    def _() -> None:
        _attend_to_own(softmax, data, (query_ref, context[0], data.layer[0]), caches, plan)

    if plan.prompts:

        @pl.when(step.of_prompt)
        def _() -> None:
            blocks = (running.Block(*prompt[half]) for half in halves)
            _extend_by_prompt(softmax, step, data, (*blocks, context[0]), plan)


def _split(refs: Sequence[Any], sizes: Sequence[int]) -> list[Sequence[Any]]:
    """Consecutive parts of those sizes."""
    ends = list(itertools.accumulate(sizes))
    assert ends[-1] == len(refs)
    return [refs[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _moved(query_BNH: jax.Array, arrays: Sequence[jax.Array]) -> int:
    """Bytes read, if all slots are in use; the kernel copies the own caches by hand."""
    layer = sum(x.nbytes // x.shape[0] for x in arrays)
    return 2 * query_BNH.nbytes + layer


def _call(
    query_BNH: jax.Array, new: Any, own: Any, numbers: tuple[jax.Array, ...], *,
    prompt: tuple[Any, ...], plan: plans.Plan, name: str, interpret: Any,
) -> tuple[jax.Array, reference.Pair]:  # fmt: skip
    """The own caches and prompts go in, and the own caches come out, as arrays with slots behind heads."""
    whole, anywhere = pl.BlockSpec(memory_space=pltpu.VMEM), pl.BlockSpec(memory_space=pl.ANY)
    slots_inside = [x.swapaxes(2, 3) for x in jax.tree.leaves(own)]
    prompts = [x.swapaxes(2, 3) for x in jax.tree.leaves(prompt)]
    new_tokens, buffers, tiles, prompt_specs = [], [], [], []
    for x in slots_inside:
        width, tile = x.shape[4:], plans.TILES[x.dtype] if x.ndim == 5 else plans.LANES
        new_tokens.append(pltpu.VMEM((plan.kv_heads, plan.batch, *(width or (1,))), jnp.float32))
        buffers.append(pltpu.VMEM((2, plan.rows, plan.kv_heads, plan.block, *width), x.dtype))
        tiles.append(pltpu.VMEM((2, plan.rows, plan.kv_heads, tile, *width), x.dtype))
    for x in prompts:
        index = functools.partial(steps.prompt_block, plan=plan, ndim=x.ndim)
        prompt_specs.append(pl.BlockSpec((None, None, plan.kv_heads, plan.prompt_block, *x.shape[4:]), index))
    stacked = (plan.sheets, plan.held * plan.padded)
    state = [pltpu.VMEM((*stacked, size), jnp.float32) for size in (query_BNH.shape[2], 1, 1, query_BNH.shape[2])]
    semaphores = [pltpu.SemaphoreType.DMA((len(slots_inside), 2))] * 2
    first_cache = len(numbers) + 3
    context_BNH, *written = pl.pallas_call(
        functools.partial(_kernel, plan=plan, arrays=len(slots_inside) // 2),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(numbers),
            grid=(plan.steps,),
            in_specs=[whole] * 3 + [anywhere] * len(slots_inside) + prompt_specs,
            out_specs=[whole] + [anywhere] * len(slots_inside),
            scratch_shapes=[*new_tokens, *buffers, *tiles, *semaphores, *state],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query_BNH, *slots_inside)],
        input_output_aliases={first_cache + i: 1 + i for i in range(len(slots_inside))},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES),
        cost_estimate=pl.CostEstimate(
            flops=0, transcendentals=0, bytes_accessed=_moved(query_BNH, [*new, *slots_inside, *prompts])
        ),
        interpret=interpret,
        name=name,
    )(*numbers, query_BNH, *(x.swapaxes(0, 1) for x in new), *slots_inside, *prompts)
    return context_BNH, jax.tree.unflatten(jax.tree.structure(own), [x.swapaxes(2, 3) for x in written])


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
    block: int | None = None,
    rows: int | None = None,
    known_position: int | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "B N H"], reference.Pair]:
    """Context of each row's new token, and the rings that hold it; see reference.append_attention.

    `block` slots of each of `rows` rows are read at a time: by default as many as were found best.  `known_position`
    says when compiling that every row stands there: a static profile reads prefetched data as zeros.
    """
    plan = plans.make(
        query_BNH, ring[0], prompts=0, tokens=0, block=block, rows=rows, scale=scale, window=window, soft_cap=soft_cap,
        known_position=known_position, known_length=None,
    )  # fmt: skip
    numbers = (jnp.reshape(layer, (1,)), position_B)
    return _call(query_BNH, new, ring, numbers, prompt=(), plan=plan, name="append_attention", interpret=interpret)


def grouped(
    query_BNH: Float[Array, "B N H"],
    new: tuple[Float[Array, "B K H"], Float[Array, "B K H"]],
    own: reference.Pair,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
    *,
    prompt: reference.PromptPair,
    length_P: Int[Array, "P"],
    group_B: Int[Array, "B"],
    scale: float,
    window: int,
    soft_cap: float,
    block: int | None = None,
    rows: int | None = None,
    known: tuple[int, int] | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "B N H"], reference.Pair]:
    """Context of each row's new token over its prompt and its own tokens; see reference.grouped.

    `known` says when compiling the position of every row and the length of every prompt, as in `append_attention`, and
    that row b looks at prompt b // (B / P).
    """
    prompts, tokens = jax.tree.leaves(prompt)[0].shape[1:3]
    plan = plans.make(
        query_BNH, own[0], prompts=prompts, tokens=tokens, block=block, rows=rows,
        scale=scale, window=window, soft_cap=soft_cap,
        known_position=known[0] if known else None, known_length=known[1] if known else None,
    )  # fmt: skip
    looked_at_B = groups.looked_at(group_B, position_B, prompts, window)
    order_B, first = groups.runs(looked_at_B, prompts)
    numbers = (jnp.reshape(layer, (1,)), position_B, looked_at_B, order_B, first, length_P)
    return _call(query_BNH, new, own, numbers, prompt=prompt, plan=plan, name="grouped_decode", interpret=interpret)
