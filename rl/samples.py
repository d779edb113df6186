"""The groups of samples of one step: problems drawn, answered and graded, and others drawn where groups tell nothing.

Group k of step s is of problem (s - 1) P + k, as long as k < P, the prompts of a step.  The groups that dynamic
sampling adds (rl/refill.py) are of problems beyond those of all steps, a span of them for every step.  So what is
sampled depends on the seed and the number of the step alone, and a resumed run samples what it would have sampled.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from thinkfirst.core import metrics, profiling
from thinkfirst.rl import batch, curriculum, overlong, policy, refill, shares, stages
from thinkfirst.rl.data import source
from thinkfirst.rl.rewards import reward

# graded = grade(rows, step=, phase=): of all samples of a round at once, as `grading.Grader` does it
Grader = Callable[..., list[reward.Graded]]


@dataclasses.dataclass(frozen=True)
class Group:
    """A problem with the G samples of it, on the host; the rollout has G rows."""

    problem: batch.Problem
    prompt: tuple[int, ...]
    prompt_id: int
    completions: tuple[batch.Completion, ...]
    graded: tuple[reward.Graded, ...]
    rollout: batch.Rollout


@dataclasses.dataclass(frozen=True)
class Sampler:
    """What samples and grades the groups of every step of a stage."""

    subject: policy.Policy
    stage: stages.Grpo
    problems: source.Source
    sampling: batch.Sampling
    root: jax.Array
    grade: Grader
    check: Callable[[str], None] = lambda where: None  # asked between the parts of a step; may raise

    def gather(self, step: int, clock: metrics.Clock) -> tuple[list[Group], tuple[int, ...], dict[str, float]]:
        """(all groups sampled, which of them to learn from, metrics of the engine and of the refilling)."""
        stage, measured = self.stage, []
        found: list[Group] = []
        key = jax.random.fold_in(self.root, jax.device_put(np.uint32(step)))
        asked, keep = stage.prompts, tuple(range(stage.prompts))
        while asked:
            found += self._round(step, clock, key=key, first=len(found), count=asked)
            measured.append(self.subject.engine(stage.max_new_tokens).metrics)
            key = jax.random.fold_in(key, jax.device_put(np.uint32(len(measured))))
            asked = 0
            if stage.refill_tokens:
                planned = self._plan(found)
                asked, keep = planned.draw, planned.keep
        self.subject.engine(stage.max_new_tokens).release()  # the update needs the memory
        return found, keep, {**_over_rounds(measured), **self._refilled(found, keep, len(measured))}

    def _round(self, step: int, clock: metrics.Clock, *, key: jax.Array, first: int, count: int) -> list[Group]:
        """Groups `first` to `first + count` of the step."""
        subject, stage = self.subject, self.stage
        with profiling.phase("data"):
            asked = draw(self.problems, stage, step, first=first, count=count)
            prompts = subject.prompts(asked)
        with clock.phase("rollout"):
            engine = subject.engine(stage.max_new_tokens)
            pause = functools.partial(self.check, f"{stage.name}: rollout of step {step}")
            rollout = engine.sample(
                subject.params, subject.adapter, prompts, self.sampling, key, group=stage.group, pause=pause
            )
            completions = subject.completions(rollout)
        self.check(f"{stage.name}: rewards of step {step}")
        with clock.phase("reward"):
            rows = [(asked[row // stage.group], completion) for row, completion in enumerate(completions)]
            phase = curriculum.phase_at(stage.phases, step).name
            graded = shares.graded(self.grade, rows, group=stage.group, step=step, phase=phase)
            self.check(f"{stage.name}: rewards of step {step}")
            graded = punished(graded, np.asarray(rollout.length_B), stage)
        groups = []
        for place, problem in enumerate(asked):
            part = slice(place * stage.group, (place + 1) * stage.group)
            groups.append(
                Group(
                    problem=problem,
                    prompt=tuple(prompts.tokens_PT[place, : prompts.length_P[place]].tolist()),
                    prompt_id=int(prompts.id_P[place]),
                    completions=tuple(completions[part]),
                    graded=tuple(graded[part]),
                    rollout=jax.tree.map(lambda x, part=part: x[part], rollout),
                )
            )
        return groups

    def _plan(self, groups: Sequence[Group]) -> refill.Plan:
        reward_PG, known_PG = rewards(groups)
        return refill.plan(
            reward_PG,
            np.array([group.rollout.length_B.sum() for group in groups]),
            wanted=self.stage.prompts,
            token_budget=self.stage.refill_tokens,
            most=self.stage.prompts,
            known_PG=known_PG,
        )

    def _refilled(self, groups: Sequence[Group], keep: Sequence[int], rounds: int) -> dict[str, float]:
        if not self.stage.refill_tokens:
            return {}
        missing = self.stage.prompts - len(keep)
        return {"refill/rounds": float(rounds), "refill/groups": float(len(groups)), "refill/missing": float(missing)}


def draw(
    problems: source.Source, stage: stages.Grpo, step: int, *, first: int = 0, count: int = 0
) -> list[batch.Problem]:
    """The problems of groups `first` to `first + count` of a step, of its phase's difficulties in turn."""
    phase = curriculum.phase_at(stage.phases, step)
    span = stage.refill_tokens // stage.group  # a group costs at least a token a sample
    beyond = stage.steps * stage.prompts + (step - 1) * span - stage.prompts
    asked = []
    for group in range(first, first + (count or stage.prompts)):
        added = group >= stage.prompts
        index = turn = group + (beyond if added else (step - 1) * stage.prompts)
        if problems.counts_by_difficulty and not added:  # an added one is beyond all turns of its difficulty
            turn = curriculum.turn(stage.phases, stage.prompts, index)
        asked.append(problems.problem(turn, curriculum.difficulty_at(phase, index)))
    return asked


def rewards(groups: Sequence[Group]) -> tuple[Float[np.ndarray, "P G"], Bool[np.ndarray, "P G"]]:
    """(rewards, whether each is known); 0 where it is not."""
    totals = [[grade.total for grade in group.graded] for group in groups]
    known_PG = np.array([[total is not None for total in row] for row in totals])
    return np.array([[0.0 if total is None else total for total in row] for row in totals]), known_PG


def punished(
    graded: Sequence[reward.Graded], length_B: Int[np.ndarray, "B"], stage: stages.Grpo
) -> list[reward.Graded]:
    """The grades with the soft punishment of overlong completions, a part of its own, added to what is known."""
    if not stage.overlong.buffer:
        return list(graded)
    soft_B = overlong.soft_punishment(length_B, max_tokens=stage.max_new_tokens, buffer=stage.overlong.buffer)
    return [
        dataclasses.replace(
            grade,
            total=None if grade.total is None else grade.total + stage.overlong.penalty * float(soft),
            parts={**grade.parts, "overlong": float(soft)},
        )
        for grade, soft in zip(graded, soft_B, strict=True)
    ]


def taught(groups: Sequence[Group], advantage_PG: Float[np.ndarray, "P G"], stage: stages.Grpo) -> list[batch.Sample]:
    """The samples of the groups with their advantages; those that overlong filtering is for have no completion."""
    if not groups:
        return []
    rollout = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(group.rollout for group in groups))
    found = batch.samples([group.prompt for group in groups], rollout, advantage_PG.reshape(-1))
    if stage.overlong.drop:
        found = overlong.filtered(found, rollout.stopped_B)
    return found if stage.learn_stop else batch.without_stop(found, rollout.stopped_B)


def _over_rounds(measured: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The engine's metrics of all rounds: added up, the largest, or averaged."""
    rules: dict[str, Callable[..., Any]] = {
        "rollout/turns": np.sum,
        "rollout/prefills": np.sum,
        "rollout/compiles": np.max,
        "rollout/cache_bytes": np.max,
    }
    names = dict.fromkeys(name for row in measured for name in row)  # a round may know less than another
    return {name: float(rules.get(name, np.mean)([row[name] for row in measured if name in row])) for name in names}
