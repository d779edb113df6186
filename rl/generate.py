"""Completions of given prompts, as they end, by the engine that trains."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from thinkfirst.rl import batch, policy, stopping

TURNS = 16  # tokens of each row between two looks


class Generated(NamedTuple):
    """Sample number `sample` of prompt number `place`; the stop token, when there was one, is its last.

    finish_reason is "stop", "length", or "" for one that still grows.
    """

    place: int
    sample: int
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str


def generate(
    subject: policy.Policy,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: batch.Sampling,
    num_samples: int,
    seed: int,
    cut: stopping.Cut | None = None,
    growing: bool = False,
) -> Iterator[Generated]:
    """Every completion once, when it has ended; prompts of like length together, the shortest first.

    With `growing`, also what there is of those that have not, every few tokens.  A sample depends on the seed, its
    prompt's place and its number alone: not on what it is drawn beside.
    """
    key = jax.random.key(seed)
    for width, places in _by_width([len(prompt) for prompt in prompts]):
        padded = batch.pad_prompts([prompts[place] for place in places], places, width)
        engine = subject.engine(int(np.max(sampling.max_new_tokens)))
        told_B = np.zeros(len(places) * num_samples, bool)
        for progress in engine.stream(
            subject.params, subject.adapter, padded, sampling, key, group=num_samples, turns=TURNS, cut=cut
        ):
            for row in np.flatnonzero(~told_B & (progress.ended_B | growing)):
                prompt, sample = divmod(int(row), num_samples)
                where, ended = (places[prompt], sample), bool(progress.ended_B[row])
                yield _generated(progress.rollout, int(row), where, ended=ended)
            told_B |= progress.ended_B


def _by_width(lengths: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """(padded length, places of the prompts of that length): powers of two, to compile little."""
    by_width: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        by_width.setdefault(batch.wide_bucket(length), []).append(place)
    yield from sorted(by_width.items())


def _generated(rollout: batch.Rollout, row: int, where: tuple[int, int], *, ended: bool) -> Generated:
    count = int(rollout.length_B[row])
    return Generated(
        *where,
        tokens=rollout.tokens_BT[row, :count].tolist(),
        logprobs=[float(logp) for logp in rollout.logp_BT[row, :count]],
        finish_reason="" if not ended else "stop" if rollout.stopped_B[row] else "length",
    )
