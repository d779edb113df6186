"""How the kernel cuts its work: what is fixed when it is compiled, and which operands it can take."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from thinkfirst.kernels import blocks
from thinkfirst.kernels.decode_attention import quantised

TILES = {jnp.dtype(jnp.float32): 16, jnp.dtype(jnp.bfloat16): 16, jnp.dtype(jnp.int8): 32}  # slots written together
LANES = 128  # that hold the scales of as many slots
SUBLANES = 8
STEP_BYTES = 2**21  # of keys (and of values) read in one step; two of each are in VMEM
LEAST_BYTES = 2**19  # the same, however little room there is
VMEM_BYTES = 15 * 2**20  # to be stayed within: a v4 has 16 MiB
ROWS, BLOCK = 16, 256  # read in one step, where kernels/block_sizes has nothing better
PROMPT_ROWS = 8  # that look at a block of their prompt together
PROMPT_BLOCK = 512
WHOLE_BYTES = 2**22  # of queries, which are in VMEM as a whole


@dataclasses.dataclass(frozen=True)
class Plan:
    """`batch` rows, `rows` at a time and `block` slots of each; `prompts` of `tokens`, `prompt_block` at a time."""

    batch: int
    rows: int
    slots: int
    block: int
    prompts: int
    tokens: int
    prompt_block: int
    kv_heads: int
    shared: int
    precise: bool
    scale: float
    window: int
    soft_cap: float
    known_position: int | None
    known_length: int | None

    @property
    def per_sheet(self) -> int:
        """Key/value heads whose query heads fill no more than 8 sublanes together; 1 if one fills more."""
        fits = [n for n in range(1, self.kv_heads + 1) if self.kv_heads % n == 0 and n * self.shared <= SUBLANES]
        return max(fits, default=1)

    @property
    def sheets(self) -> int:
        """Sets of query heads of a row that are kept in sublane tiles of their own."""
        return self.kv_heads // self.per_sheet

    @property
    def padded(self) -> int:
        """Query heads of a sheet, rounded up to whole sublane tiles."""
        return -(-self.per_sheet * self.shared // SUBLANES) * SUBLANES

    def heads_of(self, sheet: int) -> range:
        """Its key/value heads."""
        return range(sheet * self.per_sheet, (sheet + 1) * self.per_sheet)

    def used(self, sheet: int) -> slice:
        """Its query heads."""
        each = self.per_sheet * self.shared
        return slice(sheet * each, (sheet + 1) * each)

    @property
    def chunks(self) -> int:
        """Sets of rows that are looked at together."""
        return self.batch // self.rows

    @property
    def own_blocks(self) -> int:
        """Blocks of a row's own cache."""
        return self.slots // self.block

    @property
    def own_steps(self) -> int:
        """Steps that read the rows' own caches; they come first."""
        return self.chunks * self.own_blocks

    @property
    def prompt_blocks(self) -> int:
        """Blocks of a prompt; 0 where rows share none."""
        return self.tokens // self.prompt_block if self.prompts else 0

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.own_steps + self.prompts * self.prompt_blocks

    @property
    def prefetched(self) -> int:
        """Sets of numbers in scalar memory: layer and position, and four on prompts."""
        return 6 if self.prompts else 2

    @property
    def held(self) -> int:
        """Rows whose softmax is kept: all where prompts are still to come, else those at hand."""
        return self.batch if self.prompts else self.rows

    @property
    def together(self) -> int:
        """Rows that look at a block of their prompt together."""
        return min(self.batch, PROMPT_ROWS)

    def stacked(self, b: int) -> slice:
        """Where row b is in what is stacked for several rows."""
        return slice(b * self.padded, (b + 1) * self.padded)


def problem(query_BNH: jax.Array, cache: jax.Array | quantised.Quantised, tokens: int) -> str:
    """Why the kernel cannot take these operands; empty if it can."""
    values, unit = _values(cache), _unit(cache)
    width, slots = query_BNH.shape[2], values.shape[2]
    if values.dtype not in TILES:
        return f"a cache of {values.dtype}"
    if width % 64:
        return f"heads of width {width}, which is no multiple of 64"
    if slots % unit or tokens % unit:
        return f"{slots} slots and {tokens} prompt tokens, which must be multiples of {unit}"
    if query_BNH.size * query_BNH.dtype.itemsize > WHOLE_BYTES:
        return f"queries {query_BNH.shape}, more than {WHOLE_BYTES} bytes"
    return ""


def make(
    query_BNH: jax.Array, cache: jax.Array | quantised.Quantised, *, prompts: int, tokens: int,
    block: int | None, rows: int | None, **settings: Any,
) -> Plan:  # fmt: skip
    """Up to `rows` rows and blocks of up to `block` slots, as far as there is room for what is read in a step.

    None of them are as many as were found best for the chip.
    """
    values, unit = _values(cache), _unit(cache)
    batch, heads, width = query_BNH.shape
    slots, kv_heads = values.shape[2:4]
    slot = kv_heads * width * values.dtype.itemsize
    shapes = f"{batch} rows of {slots} slots of {kv_heads} x {width} {values.dtype}"
    found = blocks.sizes("decode_attention", shapes, {"rows": ROWS, "block": BLOCK})
    rows, block = rows or found["rows"], block or found["block"]
    block = _divisor(slots, min(block, STEP_BYTES // slot), unit)
    prompt_block = _divisor(tokens, min(PROMPT_BLOCK, STEP_BYTES // slot), unit) if prompts else unit
    plan = Plan(
        batch=batch,
        rows=math.gcd(batch, rows),
        slots=slots,
        block=block,
        prompts=prompts,
        tokens=tokens,
        prompt_block=prompt_block,
        kv_heads=kv_heads,
        shared=heads // kv_heads,
        precise=jnp.float32 in (query_BNH.dtype, values.dtype),
        **settings,
    )
    spare = VMEM_BYTES - _kept(plan, query_BNH) - (4 * prompt_block * slot if prompts else 0)
    if isinstance(cache, quantised.Quantised):  # scales of new tokens, and a block of a head in float32 and bfloat16
        spare -= 8 * batch * kv_heads * LANES + 12 * max(block, prompt_block) * width
    most = max(LEAST_BYTES, min(STEP_BYTES, spare // 4))
    while plan.rows > 1 and plan.rows * block * slot > most:
        plan = dataclasses.replace(plan, rows=plan.rows // 2 if plan.rows % 2 == 0 else 1)
    return plan


def _kept(plan: Plan, query_BNH: jax.Array) -> int:
    """Bytes of VMEM that do not depend on what is read in a step: state, queries, contexts and new tokens."""
    width = query_BNH.shape[2]
    state = plan.sheets * plan.held * plan.padded * 4 * (2 * width + 2 * LANES)
    new = 2 * plan.batch * plan.kv_heads * width * (4 + query_BNH.dtype.itemsize)
    return state + new + 2 * query_BNH.size * query_BNH.dtype.itemsize


def _values(cache: jax.Array | quantised.Quantised) -> jax.Array:
    return cache.values if isinstance(cache, quantised.Quantised) else cache


def _unit(cache: jax.Array | quantised.Quantised) -> int:
    """What blocks must be multiples of."""
    return LANES if isinstance(cache, quantised.Quantised) else TILES.get(cache.dtype, 1)


def _divisor(size: int, most: int, unit: int) -> int:
    """The largest multiple of `unit`, at most `most`, that divides `size`."""
    return max(block for block in range(unit, max(most, unit) + 1, unit) if size % block == 0)
