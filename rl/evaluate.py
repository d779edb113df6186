"""How good a policy is on held-out problems: accuracy sampled and greedy, strict and lenient, format, trace, length."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from thinkfirst.rl import batch, policy, stages
from thinkfirst.rl.rewards import answers, parse, trace

NUM_SHOWN = 2  # questions of each difficulty kept with their completions


@dataclasses.dataclass(frozen=True)
class Marked:
    """One completion with what evaluation asks of it."""

    problem: batch.Problem
    completion: batch.Completion
    right: bool
    right_strictly: bool
    well_formed: bool


def mark(problem: batch.Problem, completion: batch.Completion) -> Marked:
    """Lenient: the answer block, or else the last number.  Strict: only in the form asked for."""
    parsed = parse.parse(completion)
    strict, lenient = parse.strict_answer(parsed), parse.lenient_answer(completion.text)
    return Marked(
        problem=problem,
        completion=completion,
        right=lenient is not None and answers.equal(lenient, problem.answer),
        right_strictly=strict is not None and answers.equal(strict, problem.answer),
        well_formed=parsed.well_formed,
    )


def evaluate(
    subject: policy.Policy,
    problems: Sequence[batch.Problem],
    stage: stages.Evaluate,
    key: jax.Array,
    *,
    check: Callable[[str], None] = lambda where: None,
) -> dict[str, Any]:
    """The entry of final_results.json for this stage.  The same key draws the same noise for every policy.

    `check` is called between its parts and may raise.
    """
    sampled = _answer(subject, problems, stage, key, temperature=stage.temperature, samples=stage.samples, check=check)
    greedy = _answer(subject, problems, stage, key, temperature=0.0, samples=1, check=check)
    by_problem = [sampled[i : i + stage.samples] for i in range(0, len(sampled), stage.samples)]
    scores = [float(np.mean([row.right for row in rows])) for rows in by_problem]
    return {
        "stage": stage.label,
        "problems": len(problems),
        "num_samples": stage.samples,
        "temperature": stage.temperature,
        "accuracy": _mean(sampled, lambda row: row.right),
        "accuracy_interval": list(interval(scores)),
        "accuracy_greedy": _mean(greedy, lambda row: row.right),
        "accuracy_strict": _mean(sampled, lambda row: row.right_strictly),
        "format_rate": _mean(sampled, lambda row: row.well_formed),
        "trace_score": _mean(sampled, lambda row: trace.score(row.completion, row.problem)),
        "mean_tokens": _mean(sampled, lambda row: len(row.completion.spans)),
        "by_difficulty": _by(sampled, lambda problem: problem.difficulty),
        "by_domain": _by(sampled, lambda problem: problem.domain),
        "samples": _shown(by_problem),
    }


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of per-problem scores (normal approximation, clipped to [0, 1])."""
    if len(scores) < 2:
        return (0.0, 1.0)
    mean, half = float(np.mean(scores)), 1.96 * float(np.std(scores, ddof=1)) / math.sqrt(len(scores))
    return (max(0.0, mean - half), min(1.0, mean + half))


def _answer(
    subject: policy.Policy,
    problems: Sequence[batch.Problem],
    stage: stages.Evaluate,
    key: jax.Array,
    *,
    temperature: float,
    samples: int,
    check: Callable[[str], None],
) -> list[Marked]:
    """Every problem's `samples` completions, problem by problem."""
    room = stage.max_new_tokens
    sampling = batch.Sampling.of(temperature=temperature, max_new_tokens=room)
    prompts = subject.prompts(problems)
    rollout = subject.sample(prompts, sampling, key, group=samples, room=room, pause=lambda: check(stage.name))
    check(stage.name)
    return [mark(problems[row // samples], found) for row, found in enumerate(subject.completions(rollout))]


def _mean(rows: Sequence[Marked], value: Callable[[Marked], float]) -> float:
    return float(np.mean([value(row) for row in rows]))


def _by(rows: Sequence[Marked], group_of: Callable[[batch.Problem], str]) -> dict[str, float]:
    groups: dict[str, list[Marked]] = {}
    for row in rows:
        groups.setdefault(group_of(row.problem), []).append(row)
    return {name: _mean(group, lambda row: row.right) for name, group in groups.items()}


def _shown(by_problem: Sequence[Sequence[Marked]]) -> list[dict[str, Any]]:
    """The first sample of the first few questions of each difficulty."""
    seen: dict[str, int] = {}
    shown = []
    for first, *_ in by_problem:
        level = first.problem.difficulty
        seen[level] = seen.get(level, 0) + 1
        if seen[level] <= NUM_SHOWN:
            shown.append(
                {
                    "question": first.problem.question,
                    "answer": first.problem.answer,
                    "difficulty": level,
                    "completion": first.completion.text,
                    "correct": first.right,
                }
            )
    return shown
