"""What both sweeps of causal attention read, and in which blocks."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from thinkfirst.kernels import prologue as prologues
from thinkfirst.kernels.flash_attention import causal_plan

BlockOf = Callable[..., Any]  # first_ref, b, i, r -> block


class Turned(NamedTuple):
    """Queries and keys after their prologue, on chip: [heads, block, H] and [blocks, groups, block, H]."""

    query: Any
    key: Any


class Late(NamedTuple):
    """What d key is pulled back with: the blocks that belong to the key block being written."""

    key: Any
    turn: prologues.Turn | None


class Operands(NamedTuple):
    """Of queries, keys and values there is an operand per head of a step, [1, 1, block, H]."""

    query: Any
    key: Any
    value: Any
    segment: Any
    turn: prologues.Turn | None

    def query_rows(self, turned: Turned | None, head: int, rows: slice) -> Array:
        """Rows of the query block at hand, after the prologue if there is one."""
        return turned.query[head, rows] if turned else self.query[head][0, 0, rows]

    def key_rows(self, turned: Turned | None, group: int, j: Array, rows: slice) -> Array:
        """Rows of key block `j`, the one at hand, after the prologue if there is one."""
        return turned.key[j, group, rows] if turned else self.key[group][0, 0, rows]

    def take_in(self, turned: Turned | None, i: Array, plan: causal_plan.Plan) -> None:
        """Fills `turned` for query block `i` and the key block of its diagonal."""
        if turned is None or self.turn is None:
            return
        for rows in plan.tiles():
            for head, ref in enumerate(self.query):
                turned.query[head, rows] = self.turn.rows(ref[0, 0, rows], prologues.QUERY, rows, plan.epsilon)
            for group, ref in enumerate(self.key):
                turned.key[i, group, rows] = self.turn.rows(ref[0, 0, rows], prologues.KEY, rows, plan.epsilon)


def each_head(plan: causal_plan.Plan, count: int, block_of: BlockOf) -> tuple[pl.BlockSpec, ...]:
    """Blocks of [B, heads, T, H] that are one head each, of the `count` heads of a step."""
    return tuple(
        pl.BlockSpec(
            (1, 1, plan.block, plan.width),
            lambda b, k, i, r, first, n=n: (b, k * count + n, block_of(first, b, i, r), 0),
        )
        for n in range(count)
    )


def together(plan: causal_plan.Plan, count: int, block_of: BlockOf) -> pl.BlockSpec:
    """A block of [B, T, heads * H] with the `count` heads of a step."""
    return pl.BlockSpec((1, plan.block, count * plan.width), lambda b, k, i, r, first: (b, block_of(first, b, i, r), k))


def angles(plan: causal_plan.Plan, turn: prologues.Turn | None, block_of: BlockOf) -> prologues.Turn | None:
    """Blocks of a prologue's operands."""
    if turn is None:
        return None
    angle = pl.BlockSpec((1, plan.block, plan.width // 2), lambda b, k, i, r, first: (b, block_of(first, b, i, r), 0))
    whole = pl.BlockSpec((1, plan.width), lambda b, k, i, r, first: (0, 0))
    return prologues.Turn((whole,) * len(turn.scales), angle, angle)


def in_blocks(plan: causal_plan.Plan, turn: prologues.Turn | None, length: int) -> Operands:
    """The blocks of the operands that both sweeps read; with a prologue a key block is needed raw only once."""
    return Operands(
        query=each_head(plan, plan.heads, plan.query_block),
        key=each_head(plan, plan.groups, plan.key_block if turn is None else plan.diagonal_block),
        value=each_head(plan, plan.groups, plan.key_block),
        segment=pl.BlockSpec((1, 1, length), lambda b, k, i, r, first: (b, 0, 0)),
        turn=angles(plan, turn, plan.query_block),
    )


def operands(plan: causal_plan.Plan, *arrays: Any) -> Operands:
    """The arrays of `in_blocks`, from query, key and value [B, heads, T, H], segments and prologue."""
    query, key, value, segment, turn = arrays
    return Operands((query,) * plan.heads, (key,) * plan.groups, (value,) * plan.groups, segment[:, None], turn)


def turned(plan: causal_plan.Plan, turn: prologues.Turn | None, dtype: Any) -> Turned | None:
    """Room for queries and keys after their prologue."""
    if turn is None:
        return None
    return Turned(
        query=pltpu.VMEM((plan.heads, plan.block, plan.width), dtype),
        key=pltpu.VMEM((plan.blocks, plan.groups, plan.block, plan.width), dtype),
    )
