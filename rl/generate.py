"""Completions of given prompts, a batch of prompts of like length at a time, by the engine that trains."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from thinkfirst.models import gemma, lora
from thinkfirst.rl import batch, rollout


class Generated(NamedTuple):
    """One completion; the stop token, when there was one, is its last."""

    tokens: list[int]
    logprobs: list[float]
    finish_reason: str


def generate(
    model: gemma.Model,
    params: gemma.Params,
    adapter: lora.Adapter | None,
    mesh: Mesh,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: batch.Sampling,
    num_samples: int,
    stop_ids: tuple[int, ...],
    seed: int,
    batch_size: int,
) -> Iterator[tuple[int, list[Generated]]]:
    """(place of a prompt in `prompts`, its `num_samples` completions), shortest prompts first.

    A sample depends on the seed, its prompt's place and its number alone: not on the batch it is drawn in.
    """
    room = int(sampling.max_new_tokens)
    engine = rollout.Engine(model, mesh, group=num_samples, room=room, stop_ids=stop_ids)
    for width, places in _batches([len(prompt) for prompt in prompts], batch_size):
        filled = places + places[-1:] * (min(batch_size, len(prompts)) - len(places))
        padded = batch.pad_prompts([prompts[place] for place in filled], filled, width)
        host = jax.device_get(engine.sample(params, adapter, padded, sampling, jax.random.key(seed)))
        for row, place in enumerate(places):
            yield place, [_completion(host, row * num_samples + sample) for sample in range(num_samples)]


def _batches(lengths: Sequence[int], size: int) -> Iterator[tuple[int, list[int]]]:
    """(padded length, places of at most `size` prompts of that length)."""
    by_width: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        by_width.setdefault(batch.bucket(length), []).append(place)
    for width, places in sorted(by_width.items()):
        for begin in range(0, len(places), size):
            yield width, places[begin : begin + size]


def _completion(host: batch.Rollout, row: int) -> Generated:
    count = int(host.length_B[row])
    return Generated(
        tokens=host.tokens_BT[row, :count].tolist(),
        logprobs=[float(logp) for logp in host.logp_BT[row, :count]],
        finish_reason="stop" if host.stopped_B[row] else "length",
    )
