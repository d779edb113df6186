"""HBM bytes that the Pallas calls of a program must move, from their grids, blocks and index maps.

A block is moved when its index differs from that of the grid step before, as Pallas' pipeline does.  An operand left
in HBM for the kernel to copy by hand counts once, an output that aliases such an input not at all (the kernel writes a
part of it).  Where an index map reads prefetched data it is unknown here: such a block counts as moved at every step.
A kernel that knows better says so with `cost_estimate=pl.CostEstimate(bytes_accessed=...)`, which is taken instead.
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
    stated = eqn.params.get("cost_estimate")
    if stated is not None and stated.bytes_accessed:
        return int(stated.bytes_accessed)
    mapping = eqn.params["grid_mapping"]
    aliased = {output for _, output in eqn.params["input_output_aliases"]}
    total = 0
    for place, block in enumerate(mapping.block_mappings):
        output = place - mapping.num_inputs
        if _stays_in_hbm(block):
            total += 0 if output in aliased else _size(block.array_aval)
        else:
            total += _moves(block, mapping) * _size(block.block_aval)
    return total


def _stays_in_hbm(block: Any) -> bool:
    return str(getattr(block.block_aval, "memory_space", "")) in ("any", "hbm")


def _size(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


def _moves(block: Any, mapping: Any) -> int:
    """How often the block changes over the grid, the first time included."""
    steps = [range(size) if isinstance(size, int) else range(1) for size in mapping.grid]
    count = math.prod(len(step) for step in steps)
    closed = block.index_map_jaxpr
    dims = len(steps)
    prefetched = set(closed.jaxpr.invars[dims:])
    if any(var in prefetched for eqn in closed.jaxpr.eqns for var in eqn.invars if not hasattr(var, "val")):
        return count
    unused = [np.int32(0)] * len(prefetched)
    run = jax.extend.core.jaxpr_as_fun(closed)
    grid = np.array(list(itertools.product(*steps)), np.int32).reshape(count, dims)
    if not dims:
        return 1
    index = jax.vmap(lambda step: run(*[step[dim] for dim in range(dims)], *unused))(grid)
    index = np.stack([np.broadcast_to(np.asarray(part), (count,)) for part in index], axis=1)
    return 1 + int((index[1:] != index[:-1]).any(axis=1).sum())
