"""Operands of the measured shapes: one decoding step of 64 rows of Gemma 3 1B."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from thinkfirst.kernels import blocks
from thinkfirst.kernels.sample import tpu


def sample_head(rows: int = 64, vocabulary: int = 262_144, width: int = 1152) -> tuple[Callable, tuple]:
    """(function, operand shapes): one read of the table, no top-k or top-p."""

    def head(hidden: jax.Array, table: jax.Array, key_words: jax.Array, temperature: jax.Array) -> tpu.Draw:
        return tpu.draw(hidden, table, key_words, temperature=temperature)

    return head, (
        jax.ShapeDtypeStruct((rows, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((rows, 2), jnp.uint32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )


CASES: dict[str, Callable[[], tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]]] = {
    "sample_head": sample_head,
    "sample_head_short": functools.partial(sample_head, vocabulary=32_768),
    "sample_head_2b": functools.partial(sample_head, vocabulary=256_000, width=2304),
}
SEARCH = {
    "sample_head": blocks.Search(
        "sample",
        tuple({"part": part, "block": block} for part in (32, 64) for block in (1024, 2048, 4096)),
        counts="sample_head_short",
    ),
}
