"""How the kernel cuts its work: what is fixed when it is compiled, and which operands it can take."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

TILE = 16  # slots that are written together
SUBLANES = 8
STEP_BYTES = 2**21  # of keys (and of values) read in one step; two of each are in VMEM
STEP_ROWS = 8
PROMPT_ROWS = 8  # that look at a block of their prompt together
BLOCK = 512
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


def problem(query_BNH: jax.Array, cache_LBSKH: jax.Array, tokens: int) -> str:
    """Why the kernel cannot take these operands; empty if it can."""
    width, slots = query_BNH.shape[2], cache_LBSKH.shape[2]
    if cache_LBSKH.dtype not in (jnp.bfloat16, jnp.float32):
        return f"a cache of {cache_LBSKH.dtype}"
    if width % 64:
        return f"heads of width {width}, which is no multiple of 64"
    if slots % TILE or tokens % TILE:
        return f"{slots} slots and {tokens} prompt tokens, which must be multiples of {TILE}"
    if query_BNH.size * query_BNH.dtype.itemsize > WHOLE_BYTES:
        return f"queries {query_BNH.shape}, more than {WHOLE_BYTES} bytes"
    return ""


def make(
    query_BNH: jax.Array, cache_LBSKH: jax.Array, *, prompts: int, tokens: int, block: int, **settings: Any
) -> Plan:
    """Up to STEP_ROWS rows and blocks of up to `block` slots, together up to STEP_BYTES of keys."""
    batch, heads, width = query_BNH.shape
    slots, kv_heads = cache_LBSKH.shape[2:4]
    rows = math.gcd(batch, STEP_ROWS)
    most = STEP_BYTES // (kv_heads * width * cache_LBSKH.dtype.itemsize)
    while rows > 1 and rows * min(slots, block) > most:
        rows //= 2
    return Plan(
        batch=batch,
        rows=rows,
        slots=slots,
        block=_divisor(slots, min(block, most // rows)),
        prompts=prompts,
        tokens=tokens,
        prompt_block=_divisor(tokens, min(block, most)) if tokens else TILE,
        kv_heads=kv_heads,
        shared=heads // kv_heads,
        **settings,
    )


def _divisor(size: int, most: int) -> int:
    """The largest multiple of TILE, at most `most`, that divides `size`."""
    return max(block for block in range(TILE, max(most, TILE) + 1, TILE) if size % block == 0)
