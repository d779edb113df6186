"""From a stage's settings to the graded samples of a step: the pipeline's reward, and those of the user beside it.

A user's score counts as its weight times itself, on top of the pipeline's.  None, "not applicable", adds nothing; a
call that got no answer in time makes all its totals unknown (rl/rewards/user.py says when it ends the run).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from thinkfirst.rl import batch, curriculum, stages
from thinkfirst.rl.rewards import code, composite, domains, fault, parse, reward, think_first, user

Rows = Sequence[tuple[batch.Problem, batch.Completion]]


class Grader:
    """Rewards of all samples of a step, or of a round of it (rl/samples.py)."""

    def __init__(
        self,
        pipeline: reward.Reward,
        functions: Sequence[str] = (),
        *,
        seconds: float = 60.0,
        judge: code.Judge | None = None,
    ) -> None:
        """`judge` is the one that `pipeline` asks about programs: it is handed those of all rows before the first."""
        self._pipeline, self._judge = pipeline, judge
        self._users: dict[user.Named, user.UserReward] = {}
        for named in map(user.named, functions):
            if named.name in {other.name for other in self._users}:
                raise user.Failed(f"two rewards are named {named.name!r}: their scores could not be told apart")
            self._users[named] = user.UserReward(named.function, seconds=seconds)

    def __call__(self, rows: Rows, *, step: int, phase: str) -> list[reward.Graded]:
        """The grade of every row, in order."""
        if self._judge is not None:
            self._judge.hand_in(submissions(rows))
        graded = [self._graded(completion, problem, step=step, phase=phase) for problem, completion in rows]
        problems, completions = [problem for problem, _ in rows], [completion for _, completion in rows]
        for named, function in self._users.items():
            scores = function(completions, problems, step=step, phase=phase)
            graded = [
                _with(grade, named, None if scores is None else scores[place], answered=scores is not None)
                for place, grade in enumerate(graded)
            ]
        return graded

    def close(self) -> None:
        """Ends the processes of the user's rewards."""
        for function in self._users.values():
            function.close()

    def _graded(self, completion: batch.Completion, problem: batch.Problem, *, step: int, phase: str) -> reward.Graded:
        """The pipeline's grade, NaN where it met something that is not finite: it is no 0 and stops the update."""
        try:
            return self._pipeline(completion, problem, step=step, phase=phase)
        except fault.NotFinite:
            return reward.Graded(math.nan, {}, parse.parse(completion))


def make(stage: stages.Grpo | stages.Reject, judge: code.Judge | None = None) -> Grader:
    """What grades the samples of a stage; raises when a reward of the user's own cannot be used."""
    graded = pipeline(stage.rewards, think_first.Judges(code=judge))
    return Grader(graded, stage.user_rewards, seconds=stage.user_reward_seconds, judge=judge)


def submissions(rows: Rows) -> list[code.Submission]:
    """The programs in the rows, with the tests of each."""
    found = []
    for problem, completion in rows:
        if domains.kind(problem) == "code":
            written = domains.extracted(parse.strict_answer(parse.parse(completion)), problem)
            if written is not None:
                found.append((written, problem.tests))
    return found


def pipeline(
    schedule: stages.RewardSchedule | stages.ThinkFirstRewards,
    judges: think_first.Judges = think_first.NO_JUDGES,
) -> reward.Reward:
    """The reward that the settings name."""
    if isinstance(schedule, stages.RewardSchedule):
        return composite.make(lambda step: composite_weights(schedule, step))
    return think_first.make(
        schedule.weights(), judges, anneal_at=lambda step: curriculum.value_at(schedule.style, step)
    )


def composite_weights(schedule: stages.RewardSchedule, step: int) -> composite.RewardWeights:
    """The annealed weights of this step."""
    return composite.RewardWeights(
        trace=curriculum.value_at(schedule.trace, step),
        correctness=curriculum.value_at(schedule.correctness, step),
        confidence=curriculum.value_at(schedule.confidence, step),
        verbosity=curriculum.value_at(schedule.verbosity, step),
    )


def weights(schedule: stages.RewardSchedule | stages.ThinkFirstRewards, step: int) -> dict[str, float]:
    """What anneals, as it is at this step, for the log."""
    names = [field.name for field in dataclasses.fields(schedule)]
    annealed = {name: getattr(schedule, name) for name in names}
    return {
        f"weight/{name}": curriculum.value_at(anneal, step)
        for name, anneal in annealed.items()
        if isinstance(anneal, curriculum.Anneal)
    }


def by_domain(rows: Rows, graded: Sequence[reward.Graded]) -> dict[str, float]:
    """Means of every part and of the total in each domain, over the samples that it applies to, for the log."""
    values: dict[str, list[float]] = {}
    for (problem, _), grade in zip(rows, graded, strict=True):
        for name, value in {**grade.parts, "reward": grade.total}.items():
            if value is not None:
                values.setdefault(f"domain/{problem.domain}/{name}", []).append(value)
    return {name: float(np.mean(found)) for name, found in sorted(values.items())}


def _with(grade: reward.Graded, named: user.Named, score: float | None, *, answered: bool) -> reward.Graded:
    """The grade with a user's score in it; a total that is not finite stays so: it is a fault, known or not."""
    total = grade.total
    if total is not None and not math.isnan(total):
        total = total + named.weight * (score or 0.0) if answered else None
    return dataclasses.replace(grade, total=total, parts={**grade.parts, named.name: score})
