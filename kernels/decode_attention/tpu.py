"""Attention of one new token per row against its cache, as a TPU kernel that also writes the token into the cache.

The caches are stacked over layers, [L, B, S, K, H], and stay where they are: the layer to use is data, prefetched into
scalar memory, and only its blocks are read.  (A `dynamic_index` outside would copy the layer out of the stack and a
`dynamic_update` would copy it back.)  The kernel sees a cache as [L, B, K, S, H], slots on sublanes, so that each block
feeds the matrix unit as it lies, and new tokens as [K, B, H], as a projection leaves them.  The changes of axes outside
are bitcasts: the compiler gives a cache that is carried through a loop the kernel's layout.  Only one that enters or
leaves a program is copied, once, and not if K = 1.

The grid has one axis, walked in order: first all rows' own caches, then the prompts.

  operand                        block                                  at
  query, context, new key/value  whole, in VMEM
  own key and value              [rows, K, block, H] of [L,B,K,S,H]     layer, chunk of rows, s up to the last in use
  prompt key and value           [K, prompt block, H] of [L,P,K,T,H]    layer, p, t up to the last in use

A block beyond the last one in use is neither read (its index does not change) nor looked at, and so is a prompt that no
row looks at.  Kept in VMEM, of a chunk or, if prompts follow, of all rows: the queries in float32, and the softmax so
far (`softmax`).  It starts from the new token itself, so it is never empty, and the token's slot, which may hold a
position that the window has left behind, is masked.

Prompts: any row may look at any of them.  Rows are put in the order of their prompts outside (`groups`).  At a block of
a prompt, the rows that look at it are taken up 8 at a time, wherever they stand in VMEM, go through the matrix unit
together, and are put back: a prompt is read once, however many rows share it.  The last 8 may reach into the rows of
another prompt, which are masked and put back as they were.  Own part and prompt meet in the running softmax, which is
the combination by log-sum-exp.

Writing: a slot is narrower than what memory can address, so the 16 slots around it are taken from the block at hand,
merged with the new token and sent back by a transfer that is waited for one chunk later.  Nothing else is written.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from thinkfirst.kernels.decode_attention import groups, plans, reference, steps, writing
from thinkfirst.kernels.decode_attention import softmax as running

VMEM_BYTES = 64 * 2**20
INTERPRET = pltpu.InterpretParams(detect_races=True)  # fills memory with NaN, prints any race


def _start(softmax: running.Softmax, step: steps.Step, operands: tuple[Any, ...], plan: plans.Plan) -> None:
    """The softmax over the new token alone, for the rows of a chunk."""
    query_ref, *new_refs = operands
    for b in range(plan.rows):
        at = running.place(_kept(step, plan) + b, plan)
        query = query_ref[step.row + b].astype(jnp.float32)
        for k in range(plan.kv_heads):
            softmax.query_ref[k, pl.ds(at.start, plan.shared)] = query[k * plan.shared : (k + 1) * plan.shared]
            key, value = (ref[k, pl.ds(step.row + b, 1)] for ref in new_refs)
            softmax.start(k, at, (key, value), plan)


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
    softmax: running.Softmax, step: steps.Step, data: steps.Data, blocks: tuple[Any, ...], plan: plans.Plan
) -> None:
    """Every row of the chunk against a block of its own cache."""
    key_ref, value_ref = blocks
    rows = range(plan.rows)
    chunk = [running.place(_kept(step, plan), plan, count=plan.rows)]
    seen = jnp.concatenate([_seen(data.position[step.row + b], step.block, plan) for b in rows])
    for k in range(plan.kv_heads):
        query = softmax.queries(k, chunk)
        score = jnp.concatenate([running.dot(query[plan.stacked(b)], key_ref[b, k], running.BY_ROWS) for b in rows])

        def weigh(weight: jax.Array, k: int = k) -> jax.Array:
            parts = [running.dot(weight[plan.stacked(b)], value_ref[b, k], running.BY_COLUMNS) for b in rows]
            return jnp.concatenate(parts)

        softmax.extend(k, chunk, (running.capped(score, plan), seen), weigh)


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
    key_ref, value_ref, context_ref = refs

    def extend(turn: jax.Array, _: None) -> None:
        begin = step.begin + turn * plan.together
        start = jnp.minimum(begin, plan.batch - plan.together)
        rows = [data.order[start + b] for b in range(plan.together)]
        shares = [(start + b >= begin) & (start + b < step.end) for b in range(plan.together)]
        places = [running.place(row, plan) for row in rows]
        seen = [_in_prompt(step, data.position[row], mine, plan) for row, mine in zip(rows, shares, strict=True)]
        for k in range(plan.kv_heads):
            score = running.dot(softmax.queries(k, places), key_ref[k], running.BY_ROWS)
            weigh = functools.partial(lambda weight, k: running.dot(weight, value_ref[k], running.BY_COLUMNS), k=k)
            softmax.extend(k, places, (running.capped(score, plan), jnp.concatenate(seen)), weigh)
        pl.when(step.ends_prompt)(lambda: softmax.finish(context_ref, rows, places, plan))

    turns = jax.lax.div(step.end - step.begin + plan.together - 1, plan.together)
    jax.lax.fori_loop(0, turns, extend, None)


def _kernel(*refs: Any, plan: plans.Plan) -> None:
    prefetched, refs = refs[: plan.prefetched], refs[plan.prefetched :]
    (query_ref, *fresh_refs, key_ref, value_ref), refs = refs[:5], refs[5:]
    prompt_refs, refs = (refs[:2], refs[2:]) if plan.prompts else ((), refs)
    context_ref, key_cache_ref, value_cache_ref, *scratch_refs = refs
    new_key_ref, new_value_ref, key_tile_ref, value_tile_ref, semaphore, *state_refs = scratch_refs
    data, softmax = steps.Data.of(prefetched, plan), running.Softmax(*state_refs)
    place, layer = pl.program_id(0), prefetched[0][0]
    step = steps.Step(place, data, plan)
    writers = (
        writing.Writer(key_cache_ref, key_ref, new_key_ref, key_tile_ref, semaphore.at[0]),
        writing.Writer(value_cache_ref, value_ref, new_value_ref, value_tile_ref, semaphore.at[1]),
    )

    @pl.when(place == 0)
    def _() -> None:
        for fresh_ref, new_ref in zip(fresh_refs, (new_key_ref, new_value_ref), strict=True):
            new_ref[...] = fresh_ref[...].astype(jnp.float32)

    @pl.when((place < plan.own_steps) & (step.block == 0))
    def _() -> None:
        _start(softmax, step, (query_ref, new_key_ref, new_value_ref), plan)

    @pl.when(step.of_own)
    def _() -> None:
        for b in range(plan.rows):
            slot = jax.lax.rem(data.position[step.row + b], plan.slots)

            @pl.when(jax.lax.div(slot, plan.block) == step.block)
            def _(b: int = b, slot: jax.Array = slot) -> None:
                for writer in writers:
                    writer.send(layer, step, b, slot, plan)

        _extend_by_own(softmax, step, data, (key_ref, value_ref), plan)

    def wait_for_writes(chunk: jax.Array) -> None:
        for b in range(plan.rows):
            slot = jax.lax.rem(data.position[chunk * plan.rows + b], plan.slots)
            for writer in writers:
                writer.wait(layer, chunk, b, slot, plan)

    @pl.when(step.ends_own)
    def _() -> None:
        rows = [step.row + b for b in range(plan.rows)]
        places = [running.place(_kept(step, plan) + b, plan) for b in range(plan.rows)]
        softmax.finish(context_ref, rows, places, plan)
        pl.when(step.chunk > 0)(lambda: wait_for_writes(step.chunk - 1))
        pl.when(step.chunk == plan.chunks - 1)(lambda: wait_for_writes(step.chunk))

    if plan.prompts:

        @pl.when(step.of_prompt)
        def _() -> None:
            _extend_by_prompt(softmax, step, data, (*prompt_refs, context_ref), plan)


def _call(
    query_BNH: jax.Array, new: Any, own: Any, numbers: tuple[jax.Array, ...], *,
    prompt: tuple[jax.Array, ...], plan: plans.Plan, name: str, interpret: Any,
) -> tuple[jax.Array, reference.Pair]:  # fmt: skip
    width, dtype = query_BNH.shape[2], own[0].dtype
    whole, anywhere = pl.BlockSpec(memory_space=pltpu.VMEM), pl.BlockSpec(memory_space=pl.ANY)
    own_spec = pl.BlockSpec(
        (None, plan.rows, plan.kv_heads, plan.block, width), functools.partial(steps.own_block, plan=plan)
    )
    prompt_spec = pl.BlockSpec(
        (None, None, plan.kv_heads, plan.prompt_block, width), functools.partial(steps.prompt_block, plan=plan)
    )
    new_token = pltpu.VMEM((plan.kv_heads, plan.batch, width), jnp.float32)
    tile = pltpu.VMEM((2, plan.rows, plan.kv_heads, plans.TILE, width), dtype)
    stacked = (plan.kv_heads, plan.held * plan.padded)
    state = [pltpu.VMEM((*stacked, size), jnp.float32) for size in (width, 1, 1, width)]
    heads_first = [x.swapaxes(0, 1) for x in new]
    slots_inside = [cache.swapaxes(2, 3) for cache in (*own, *prompt)]
    first_cache = len(numbers) + 3
    context_BNH, *written = pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(numbers),
            grid=(plan.steps,),
            in_specs=[whole] * 3 + [own_spec] * 2 + [prompt_spec] * len(prompt),
            out_specs=[whole, anywhere, anywhere],
            scratch_shapes=[new_token, new_token, tile, tile, pltpu.SemaphoreType.DMA((2, 2)), *state],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query_BNH, *slots_inside[:2])],
        input_output_aliases={first_cache: 1, first_cache + 1: 2},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES),
        interpret=interpret,
        name=name,
    )(*numbers, query_BNH, *heads_first, *slots_inside)
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
        query_BNH, ring[0], prompts=0, tokens=0, block=block, scale=scale, window=window, soft_cap=soft_cap,
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
    prompt: tuple[Float[Array, "L P T K H"], Float[Array, "L P T K H"]],
    length_P: Int[Array, "P"],
    group_B: Int[Array, "B"],
    scale: float,
    window: int,
    soft_cap: float,
    block: int = plans.BLOCK,
    known: tuple[int, int] | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "B N H"], reference.Pair]:
    """Context of each row's new token over its prompt and its own tokens; see reference.grouped.

    `known` says when compiling the position of every row and the length of every prompt, as in `append_attention`, and
    that row b looks at prompt b // (B / P).
    """
    prompts, tokens = prompt[0].shape[1:3]
    plan = plans.make(
        query_BNH, own[0], prompts=prompts, tokens=tokens, block=block,
        scale=scale, window=window, soft_cap=soft_cap,
        known_position=known[0] if known else None, known_length=known[1] if known else None,
    )  # fmt: skip
    looked_at_B = groups.looked_at(group_B, position_B, prompts, window)
    order_B, first = groups.runs(looked_at_B, prompts)
    numbers = (jnp.reshape(layer, (1,)), position_B, looked_at_B, order_B, first, length_P)
    return _call(query_BNH, new, own, numbers, prompt=prompt, plan=plan, name="grouped_decode", interpret=interpret)
