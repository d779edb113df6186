"""HBM bytes that the Pallas calls of a program must move, from their grids, blocks and index maps.

A block is moved when its index differs from that of the grid step before, as Pallas' pipeline does.  An operand left
in HBM for the kernel to copy by hand counts once, an output that aliases such an input not at all (the kernel writes a
part of it).  Where an index map reads prefetched data it is unknown here: such a block counts as moved at every step,
unless the kernel says what it moves in all with `cost_estimate=pl.CostEstimate(bytes_accessed=...)`.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend
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
    steps = math.prod(_steps(mapping))
    known, unknown = 0, 0
    for place, block in enumerate(mapping.block_mappings):
        output = place - mapping.num_inputs
        if _stays_in_hbm(block):
            unknown += 0 if output in aliased else _size(block.array_aval)
        elif _reads_prefetched(block, mapping):
            unknown += steps * _size(block.block_aval)
        else:
            known += _moves(block, mapping) * _size(block.block_aval)
    stated = eqn.params["cost_estimate"]
    if unknown and stated is not None and stated.bytes_accessed:
        return max(known, int(stated.bytes_accessed))
    return known + unknown


def _stays_in_hbm(block: Any) -> bool:
    return str(getattr(block.block_aval, "memory_space", "")) in ("any", "hbm")


def _size(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


def _steps(mapping: Any) -> list[int]:
    """The grid; a size that is known at run time only counts as 1."""
    return [size if isinstance(size, int) else 1 for size in mapping.grid]


def _reads_prefetched(block: Any, mapping: Any) -> bool:
    index_map = block.index_map_jaxpr.jaxpr
    prefetched = set(index_map.invars[len(mapping.grid) :])
    return any(var in prefetched for eqn in index_map.eqns for var in eqn.invars if not hasattr(var, "val"))


def _moves(block: Any, mapping: Any) -> int:
    """How often the block changes over the grid, the first time included."""
    steps = _steps(mapping)
    if not steps:
        return 1
    count = math.prod(steps)
    grid = np.array(list(itertools.product(*map(range, steps))), np.int32)
    run = jax.extend.core.jaxpr_as_fun(block.index_map_jaxpr)
    unread = [np.int32(0)] * (len(block.index_map_jaxpr.jaxpr.invars) - len(steps))
    index = jax.vmap(lambda *step: run(*step, *unread))(*grid.T)
    index = np.stack([np.broadcast_to(np.asarray(part), (count,)) for part in index], axis=1)
    return 1 + int((index[1:] != index[:-1]).any(axis=1).sum())
