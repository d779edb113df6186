"""Per-token log-probs and entropies of given token rows, a batch of rows of like length at a time."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from thinkfirst.core import mesh as mesh_lib
from thinkfirst.core import sharding
from thinkfirst.models import gemma, lora
from thinkfirst.rl import batch

BATCH_TOKENS = 4096  # padded tokens that go through the model at once


class Scored(NamedTuple):
    """What the model says of a row: entry i belongs to token i; nothing predicts the first, so its entries are None."""

    logprobs: list[float | None]
    entropies: list[float | None]


def score(
    model: gemma.Model,
    params: gemma.Params,
    adapter: lora.Adapter | None,
    mesh: Mesh,
    rows: Sequence[Sequence[int]],
) -> Iterator[tuple[int, Scored]]:
    """(place of a row in `rows`, its scores), longest rows first, in nats at temperature 1."""
    program = jax.jit(functools.partial(_logprobs, model=model))
    for places in batches([len(row) for row in rows], mesh_lib.num_row_shards(mesh)):
        width = batch.bucket(max(1, *(len(rows[place]) for place in places)))
        tokens_BT = np.zeros((len(places), width), np.int32)
        for row_T, place in zip(tokens_BT, places, strict=True):
            row_T[: len(rows[place])] = rows[place]
        length_B = np.array([len(rows[place]) for place in places], np.int32)
        operands = jax.device_put((tokens_BT, length_B), sharding.rows(mesh))
        logp_BT, entropy_BT = jax.device_get(program(params, adapter, *operands))
        row_of = {place: row for row, place in enumerate(places)}  # the last batch repeats a row to be whole
        for place, row in row_of.items():
            yield place, Scored(_after_first(logp_BT[row], rows[place]), _after_first(entropy_BT[row], rows[place]))


def batches(lengths: Sequence[int], multiple: int) -> Iterator[list[int]]:
    """Places of rows of like length, longest first, in batches of about BATCH_TOKENS that `multiple` divides.

    Equal padded lengths give equal batch sizes: the last one repeats a row as often as it takes.
    """
    bucket_of: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        bucket_of.setdefault(batch.bucket(max(1, length)), []).append(place)
    for width, places in sorted(bucket_of.items(), reverse=True):
        wanted = min(max(1, BATCH_TOKENS // width), len(places))
        size = -(-wanted // multiple) * multiple
        for begin in range(0, len(places), size):
            part = places[begin : begin + size]
            yield part + part[-1:] * (size - len(part))


@jax.named_scope("score")
def _logprobs(
    params: gemma.Params,
    adapter: lora.Adapter | None,
    tokens_BT: Int[Array, "B T"],
    length_B: Int[Array, "B"],
    *,
    model: gemma.Model,
) -> tuple[Float[Array, "B T-1"], Float[Array, "B T-1"]]:
    """(log-prob, entropy) of every token but the first."""
    segment_BT = batch.length_mask(length_B, tokens_BT.shape[1]).astype(jnp.int32)
    hidden_BTD = model.hidden(params, tokens_BT, segment_BT=segment_BT, adapter=adapter)
    return model.token_logprob(params, hidden_BTD[:, :-1], tokens_BT[:, 1:])


def _after_first(value_T: Any, row: Sequence[int]) -> list[float | None]:
    """None, then the value of every later token of the row."""
    return [None, *map(float, value_T[: len(row) - 1])][: len(row)]
