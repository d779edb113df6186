"""What every reward is: a function of a completion, its problem, the training step and the phase of the curriculum.

A score of None means "not applicable": nothing was judged, which is not the same as nothing earned.  A total of None
keeps the sample out of its group's baseline and out of the update (`known_PG` in rl/advantage.py).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import parse


@dataclasses.dataclass(frozen=True)
class Graded:
    """A reward with the raw, unweighted scores it was made from; None where one does not apply.

    `extracted` is what was judged as the answer: None where the completion has none that counts.
    """

    total: float | None
    parts: Mapping[str, float | None]
    parsed: parse.Parsed
    extracted: str | None = None


@runtime_checkable
class Reward(Protocol):
    """The reward of one completion.  `step` counts from 1; `phase` is the name of the curriculum's."""

    def __call__(self, completion: batch.Completion, problem: batch.Problem, *, step: int, phase: str) -> Graded: ...


def check_weights(weights: Mapping[str, float]) -> None:
    """ValueError for the first weight that is not a finite number of at least 0."""
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"reward weight {name} must be finite and not negative, not {weight}")


def has_tokens(completion: batch.Completion) -> bool:
    """Whether the tokens of the text are known; without them nothing can be said of lengths and probabilities."""
    return bool(completion.spans) or not completion.text
