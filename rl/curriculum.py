"""What is trained on and what is paid for, as pure functions of the step (1, 2, ...)."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps up to and including `until` (0: for ever) draw from `difficulties` in turn."""

    name: str
    until: int
    difficulties: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Anneal:
    """A number that moves in a straight line from `start` at step 1 to `end` at step `over`, and stays there."""

    start: float
    end: float
    over: int


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase that `step` falls in; the last one goes on for ever."""
    if not phases:
        raise ValueError("a curriculum needs at least one phase")
    for phase in phases:
        if not phase.until or step <= phase.until:
            return phase
    return phases[-1]


def difficulty_at(phase: Phase, index: int) -> str:
    """Difficulty of the problem with this index: each of the phase's in turn."""
    return phase.difficulties[index % len(phase.difficulties)]


def turn(phases: Sequence[Phase], prompts: int, index: int) -> int:
    """How many problems before the one with this index had its difficulty, at `prompts` a step."""
    difficulty = difficulty_at(phase_at(phases, index // prompts + 1), index)
    start = found = 0
    while start < index:
        phase = phase_at(phases, start // prompts + 1)
        endless = phase is phases[-1] or not phase.until
        end = index if endless else min(phase.until * prompts, index)
        cycle = len(phase.difficulties)
        places = [place for place in range(cycle) if phase.difficulties[place] == difficulty]
        found += sum((place - start) // cycle - (place - end) // cycle for place in places)
        start = end
    return found


def value_at(anneal: Anneal, step: int) -> float:
    """The annealed number at `step`."""
    if anneal.over <= 1:
        return anneal.end
    progress = min(max((step - 1) / (anneal.over - 1), 0.0), 1.0)
    return anneal.start + (anneal.end - anneal.start) * progress
