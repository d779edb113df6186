"""What both sweeps of causal attention share: sizes, which blocks meet, and the arithmetic of a tile of scores."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

Ref = Any  # of Pallas, to a block in memory on chip
LANES = 128
BLOCKS = (512, 256, 128)  # tokens of a block at most; a smaller one where the memory on chip asks for it
HEADS = 4  # query heads that go through a key block in one step, as far as key/value heads can be grouped
MASKED = -1e30
BOUNDED = 60.0  # exp(60) times a sum of 1e6 terms is 1e32, exp(-60) is 1e-26
LOG2_E = math.log2(math.e)

ROWS_ROWS = (((1,), (1,)), ((), ()))  # a b^T
ROWS_COLUMNS = (((1,), (0,)), ((), ()))  # a b


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a call that is known at compile time."""

    interpret: bool | pltpu.InterpretParams
    scale: float
    window: int  # 0: all
    soft_cap: float  # 0: none
    groups: int  # key/value heads in one step
    heads: int  # query heads in one step
    width: int  # H in whole lanes
    block: int
    blocks: int
    vmem: int  # bytes on chip
    first: tuple[int, ...]  # the earliest key block of every query block, or () to read it from the segments
    prologue: bool  # whether queries and keys go through one here
    epsilon: float  # of its norm

    @property
    def steps(self) -> int:
        """Key blocks that a query block can meet, with its own."""
        return min(self.blocks, 1 + -(-(self.window - 1) // self.block)) if self.window else self.blocks

    def columns(self, n: int) -> slice:
        """The columns of head `n` of a step in a block of results."""
        return slice(n * self.width, (n + 1) * self.width)

    def group(self, head: int) -> int:
        """The key/value head of a step that a query head of it looks at."""
        return head // (self.heads // self.groups)

    def tiles(self) -> list[slice]:
        """The rows of a block, as many at a time as there are lanes."""
        return [slice(start, start + LANES) for start in range(0, self.block, LANES)]

    def positions(self, block: Array, part: slice | None = None) -> Any:
        """Where `part` of a block stands in the row of tokens."""
        start, stop = (part.start, part.stop) if part else (0, self.block)
        return pl.ds(pl.multiple_of(block * self.block + start, LANES), stop - start)

    @property
    def bounded(self) -> bool:
        return 0 < self.soft_cap <= BOUNDED

    def memory(self, itemsize: int) -> int:
        """Bytes on chip that the gradient needs, the larger of the two sweeps."""
        per_query = self.heads * self.width * (4 * 2 * itemsize + 4)
        per_key = self.groups * self.width * 4 * 2 * itemsize
        per_token = self.groups * self.width * (4 + 4 + itemsize) + LANES * 4
        tiles = 4 * self.block * self.block * 4
        if self.prologue:
            angles, rounding = 2 * 2 * self.width * 4, (self.heads + 2) * self.width * 4
            per_query += self.heads * self.width * itemsize + angles + rounding
            per_key += self.groups * self.width * 2 * itemsize
            per_token += self.groups * self.width * itemsize
        return self.block * (per_query + per_key) + self.blocks * self.block * per_token + tiles

    def compiler_params(self) -> pltpu.CompilerParams:
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=self.vmem
        )

    def first_blocks(self, segment_BT: Int[Array, "B T"]) -> Array:
        """[B, blocks, and lanes to spare]: the earliest key block whose segment ids may meet those of a query block."""
        lanes = -(-self.blocks // LANES) * LANES
        return pl.pallas_call(
            functools.partial(_first_blocks_kernel, block=self.block),
            out_shape=jax.ShapeDtypeStruct((segment_BT.shape[0], lanes), jnp.int32),
            interpret=self.interpret,
            name="causal_first_blocks",
        )(segment_BT)

    def first_key_block(self, first_ref: Ref, b: Array, i: Array) -> Array:
        """The earliest key block that query block `i` of row `b` has to meet; block `i` itself is the last."""
        if self.first:
            first = jnp.int32(self.first[0])
            for block in range(1, self.blocks):
                if self.first[block] != self.first[block - 1]:
                    first = jnp.where(i >= block, self.first[block], first)
        else:
            first = first_ref[b, i]
        if self.window:
            first = jnp.maximum(first, jax.lax.div(jnp.maximum(i * self.block - self.window + 1, 0), self.block))
        return first

    def key_block(self, first_ref: Ref, b: Array, i: Array, r: Array) -> Array:
        """The key block to have at hand in step `r` of query block `i`: i, i - 1, .. first, then the next row's."""
        return jnp.where(i - r >= self.first_key_block(first_ref, b, i), i - r, jnp.minimum(i + 1, self.blocks - 1))

    def query_block(self, first_ref: Ref, b: Array, i: Array, r: Array) -> Array:
        """The query block to have at hand: `i`, or the next one as soon as the key blocks of `i` are through."""
        return jnp.where(i - r >= self.first_key_block(first_ref, b, i), i, jnp.minimum(i + 1, self.blocks - 1))

    def own_block(self, first_ref: Ref, b: Array, i: Array, r: Array) -> Array:
        """The key block of the diagonal, then the next row's."""
        return jnp.where(r == 0, i, jnp.minimum(i + 1, self.blocks - 1))

    def diagonal_block(self, first_ref: Ref, b: Array, i: Array, r: Array) -> Array:
        """The key block of the diagonal of query block `i`, then that of the next one's."""
        return jnp.where(r == 0, i, jnp.minimum(i + 1, self.blocks - 1))

    def exponent(self, product: Array) -> Array:
        """Base-2 exponents of products q . k."""
        if self.soft_cap:
            return jnp.tanh(product * (self.scale / self.soft_cap)) * (self.soft_cap * LOG2_E)
        return product * (self.scale * LOG2_E)

    def slope(self, exponent: Array) -> Array:
        """Derivative of the capped score by the uncapped one."""
        return 1 - jnp.square(exponent * (1 / (self.soft_cap * LOG2_E)))

    def hide(
        self, score: Array, segments: tuple[Array, Array], distance: Array, *, query_axis: int, diagonal: bool
    ) -> Array:
        """`score` where the query may see the key; the first query is `distance` after the first key."""
        seen = segments[0] == segments[1]
        if diagonal or self.window:
            key, query = (
                jax.lax.broadcasted_iota(jnp.int32, score.shape, axis) for axis in (1 - query_axis, query_axis)
            )
            if diagonal:
                seen &= key - query <= distance
            if self.window:
                seen &= key - query > distance - self.window
        return jnp.where(seen, score, MASKED)


def make(query_BTNH: Array, key_BTKH: Array, *, vmem: int, window: int, **given: Any) -> Plan | None:
    """The plan with the largest steps that fit into `vmem` bytes; None where there is no such plan."""
    length, heads, width = query_BTNH.shape[1:]
    groups = key_BTKH.shape[2]
    shared = heads // groups
    together = max(n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * shared <= HEADS))
    for at_most, grouped in [(BLOCKS[0], together), *((block, 1) for block in BLOCKS)]:
        blocks = -(-length // at_most)
        plan = Plan(
            window=window if window < length else 0,
            groups=grouped,
            heads=grouped * shared,
            width=-(-width // LANES) * LANES,
            block=-(-length // (blocks * LANES)) * LANES,
            blocks=blocks,
            vmem=vmem,
            **given,
        )
        if plan.memory(query_BTNH.dtype.itemsize) <= vmem:
            return plan
    return None


def _first_blocks_kernel(segment_ref: Ref, first_ref: Ref, *, block: int) -> None:
    blocks = segment_ref.shape[1] // block
    own = jax.lax.broadcasted_iota(jnp.int32, first_ref.shape, 1)
    low = high = jnp.zeros_like(own)
    for at in range(blocks):
        segment = segment_ref[:, at * block : (at + 1) * block]
        low = jnp.where(own == at, segment.min(axis=1, keepdims=True), low)
        high = jnp.where(own == at, segment.max(axis=1, keepdims=True), high)
    first = own
    for at in reversed(range(blocks)):
        meets = (low[:, at : at + 1] <= high) & (low <= high[:, at : at + 1])
        first = jnp.where(meets & (at < first), at, first)
    first_ref[...] = first


def dot(left: Array, right: Array, contraction: tuple) -> Array:
    return jax.lax.dot_general(left, right, contraction, preferred_element_type=jnp.float32)


def wide(x: Array, columns: int) -> Array:
    """[rows, 128] with equal lanes as [rows, columns]."""
    return jnp.concatenate([x] * (columns // LANES), axis=1)


def lane_sum(x: Array) -> Array:
    """Sums of every 128th column: [rows, columns] to [rows, 128]."""
    return sum((x[:, at : at + LANES] for at in range(LANES, x.shape[1], LANES)), x[:, :LANES])


def column(row: Array) -> Array:
    """A row [1, rows] as a column [rows, 128] with equal lanes."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


_approximate_reciprocal = getattr(pltpu, "reciprocal", None) or pl.reciprocal  # JAX 0.12 moved it


def reciprocal(x: Array) -> Array:
    """1 / x for x far from the ends of float32: a few bits from the table, then Newton's steps, each doubling them."""
    guess = _approximate_reciprocal(x, approx=True)
    guess = guess * (2 - x * guess)
    return guess * (2 - x * guess)
