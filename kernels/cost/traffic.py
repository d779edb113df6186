"""HBM bytes that the Pallas calls of a program must move, from their grids, blocks and index maps.

A block is moved when its index differs from that of the grid step before, as Pallas' pipeline does.  Where an index map
reads prefetched data, the steps are walked twice, once with all that data 0 and once with all of it different, and the
larger count is taken.  An operand left in HBM for the kernel to copy by hand counts once, an output that aliases such
an input not at all (the kernel writes a part of it).  A kernel of either kind may say what it moves in all with
`cost_estimate=pl.CostEstimate(bytes_accessed=...)`.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def pallas_calls(jaxpr: Any) -> Iterator[Any]:
    """The equations of `jaxpr`, and of the programs inside it, that are Pallas calls."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            yield eqn
            continue
        for value in eqn.params.values():
            for part in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from pallas_calls(inner)


def hbm_bytes(eqn: Any) -> int:
    """Bytes that one Pallas call moves between HBM and VMEM."""
    mapping = eqn.params["grid_mapping"]
    aliased = {output for _, output in eqn.params["input_output_aliases"]}
    known, guessed = 0, 0
    for place, block in enumerate(mapping.block_mappings):
        if _stays_in_hbm(block):
            guessed += 0 if place - mapping.num_inputs in aliased else _size(block.array_aval)
            continue
        moves = [_moves(block, mapping, prefetched) for prefetched in (_zero, _different)]
        size = max(moves) * _size(block.block_aval)
        if moves[0] == moves[1]:
            known += size
        else:
            guessed += size
    stated = eqn.params["cost_estimate"]
    if guessed and stated is not None and stated.bytes_accessed:
        return max(known, int(stated.bytes_accessed))
    return known + guessed


def _stays_in_hbm(block: Any) -> bool:
    return str(getattr(block.block_aval, "memory_space", "")) in ("any", "hbm")


def _size(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


def _zero(*index: Any) -> Any:
    return jnp.int32(0)


def _different(*index: Any) -> Any:
    """A large number that depends on the place it is read from."""
    return jnp.int32(10_007) + sum((jnp.int32(101**axis) * part for axis, part in enumerate(index)), jnp.int32(0))


def _moves(block: Any, mapping: Any, prefetched: Callable[..., Any]) -> int:
    """How often the block changes over the grid, the first time included; `prefetched` stands in for such data."""
    # a size that is known at run time only counts as 1
    steps = [size if isinstance(size, int) else 1 for size in mapping.grid]
    if not steps:
        return 1
    count = math.prod(steps)
    grid = np.array(list(itertools.product(*map(range, steps))), np.int32)
    index = jax.vmap(lambda *step: _evaluated(block.index_map_jaxpr, step, prefetched))(*grid.T)
    place = np.stack([np.broadcast_to(np.asarray(part), (count,)) for part in index], axis=1)
    return 1 + int(np.any(place[1:] != place[:-1], axis=1).sum())


def _evaluated(closed: Any, given: Sequence[Any], prefetched: Callable[..., Any]) -> list[Any]:
    """What an index map gives for a grid step, with `prefetched(*index)` for whatever it reads."""
    jaxpr = closed.jaxpr
    values = dict.fromkeys(jaxpr.invars)  # references, which follow the grid indices, have no value
    values |= dict(zip(jaxpr.invars, given, strict=False))
    values |= dict(zip(jaxpr.constvars, closed.consts, strict=True))

    def value(var: Any) -> Any:
        return var.val if hasattr(var, "val") else values[var]

    for eqn in jaxpr.eqns:
        operands = [value(var) for var in eqn.invars]
        if eqn.primitive.name == "get":
            results = [prefetched(*operands[1:])]
        elif eqn.primitive.name in ("jit", "pjit"):
            results = _evaluated(eqn.params["jaxpr"], operands, prefetched)
        else:
            found = eqn.primitive.bind(*operands, **eqn.params)
            results = found if eqn.primitive.multiple_results else [found]
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [value(var) for var in jaxpr.outvars]
