"""Rewards of a step on several hosts: each grades its groups, and all know all grades.

A host whose rewards fail still takes part in the exchange, and says so: the others would wait for it otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from thinkfirst.core import hosts
from thinkfirst.rl import batch
from thinkfirst.rl.rewards import parse, reward

Rows = Sequence[tuple[batch.Problem, batch.Completion]]


class FailedElsewhere(ValueError):
    """The rewards of another host ended in an error; the message says which host, and that host says why."""


def graded(
    grade: Callable[..., list[reward.Graded]], rows: Rows, *, group: int, step: int, phase: str
) -> list[reward.Graded]:
    """The grades of `rows`, `group` of them a problem; a group is never split, so that a judge may compare."""
    count = jax.process_count()
    if count == 1:
        return grade(rows, step=step, phase=phase)
    groups = len(rows) // group
    first, last = (groups * (jax.process_index() + more) // count * group for more in (0, 1))
    mine: dict[str, Any] = {"failed": jax.process_index()}
    try:
        found = grade(rows[first:last], step=step, phase=phase) if last > first else []
        mine = {"graded": [[one.total, dict(one.parts), one.extracted] for one in found]}
    finally:
        everyone = hosts.gathered(mine)
    if failed := [one["failed"] for one in everyone if "failed" in one]:
        raise FailedElsewhere(f"the rewards of step {step} failed on host {failed[0]}")
    told = [values for one in everyone for values in one["graded"]]
    return [
        reward.Graded(total, parts, parse.parse(completion), extracted)
        for (total, parts, extracted), (_, completion) in zip(told, rows, strict=True)
    ]
