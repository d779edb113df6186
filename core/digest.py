"""Short names for data: equal only where what they stand for is equal, whatever mesh or host it is on."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ODD = (2654435761, 2246822519)  # multipliers of two independent sums


def of_rows(rows: Iterable[Any]) -> str:
    """Of JSON values and of dataclasses made of them, in their order."""
    found = hashlib.sha256()
    for row in rows:
        value = dataclasses.asdict(row) if dataclasses.is_dataclass(row) and not isinstance(row, type) else row
        found.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return found.hexdigest()[:16]


def of_file(path: str | pathlib.Path) -> str:
    """Of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def of_arrays(tree: Any) -> str:
    """Of arrays on the device, by their names, shapes, types and bits; their layout does not count.

    Each device adds up its part: sums modulo 2^32 of the words, times odd numbers that depend on their places, come
    out the same in any order.  It tells a changed base from the one a run began with; no forger.
    """
    flat = jax.tree.flatten_with_path(tree)[0]
    rows = []
    for path, leaf in flat:
        sums = np.asarray(jax.device_get(_sums(leaf))).tolist()
        rows.append([jax.tree_util.keystr(path, simple=True, separator="/"), list(leaf.shape), str(leaf.dtype), sums])
    return of_rows(rows)


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
    """Two uint32 sums over the words of an array, [2]."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    word = x.astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    sums = []
    for odd in _ODD:
        mixed = (word ^ (word >> 16)) * jnp.uint32(odd) + jnp.uint32(1)
        mixed = (mixed ^ (mixed >> 15)) * (place * jnp.uint32(2) + jnp.uint32(1))
        sums.append(mixed.sum(dtype=jnp.uint32))
    return jnp.stack(sums)
