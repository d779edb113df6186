"""How good a policy is on held-out problems, sampled and greedily: an entry of final_results.json."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from thinkfirst.rl import batch, estimates, failures, marking, policy, stages
from thinkfirst.rl.data import suite
from thinkfirst.rl.rewards import code

NUM_SHOWN = 2  # questions of each domain and difficulty kept with their completions

Rows = Sequence[marking.Marked]


def evaluate(
    subject: policy.Policy,
    problems: Sequence[batch.Problem],
    stage: stages.Evaluate,
    key: jax.Array,
    judge: code.Judge | None = None,
    *,
    check: Callable[[str], None] = lambda where: None,
) -> dict[str, Any]:
    """The entry for this stage.  The same key draws the same noise for every policy.

    `check` is called between its parts and may raise.
    """
    ask = functools.partial(_answer, subject, stage=stage, key=key, judge=judge, check=check)
    sampled = ask(problems, temperature=stage.temperature, samples=stage.samples)
    greedy = ask(problems, temperature=0.0, samples=1)
    found = {"stage": stage.label, "temperature": stage.temperature, **summary(sampled, stage.samples)}
    found["accuracy_greedy"] = _mean(row.lenient for row in closed(greedy))
    found["accuracy_greedy_interval"] = _share(closed(greedy))
    if stage.suite:
        answered = ask(suite.problems(), temperature=0.0, samples=1)
        found["suite"] = {"by_domain": by(answered, lambda problem: problem.domain), "samples": _shown(answered, 1)}
    return found


def summary(sampled: Rows, num_samples: int) -> dict[str, Any]:
    """What is said of the samples, `num_samples` of every problem, problem by problem.

    Accuracies are of the problems with a single answer that somebody could judge; `rubric` is of the others.
    """
    by_problem = [sampled[i : i + num_samples] for i in range(0, len(sampled), num_samples)]
    judged = [rows for rows in by_problem if not rows[0].is_open and all(row.lenient is not None for row in rows)]
    scores = [[row.lenient or 0.0 for row in rows] for rows in judged]
    ks = estimates.powers_of_two(num_samples)
    voting = [rows for rows in judged if any(row.vote is not None for row in rows)]
    lengths = np.array([len(row.completion.spans) for row in sampled] or [0])
    sure = [row for row in sampled if row.certainty is not None and row.strict is not None and not row.is_open]
    wrong = [row for row in sampled if row.failure]
    return {
        "problems": len(by_problem),
        "num_samples": num_samples,
        "accuracy": _mean(row.lenient for rows in judged for row in rows),
        "accuracy_interval": list(interval([math.fsum(row) / num_samples for row in scores])),
        "accuracy_strict": _mean(row.strict for rows in judged for row in rows),
        "rubric": _mean(row.strict for row in sampled if row.is_open),
        "pass_at": {str(k): _mean(_pass_at(row, k) for row in scores) for k in ks},
        "pass_interval": list(interval([float(any(s == 1 for s in row)) for row in scores])),
        "maj_at": {
            str(k): _mean(
                estimates.maj_at([row.vote for row in rows], [row.lenient or 0.0 for row in rows], k) for rows in voting
            )
            for k in ks
        },
        "format_rate": _mean(row.well_formed for row in sampled),
        "format_interval": list(interval([_mean(row.well_formed for row in rows) or 0.0 for rows in by_problem])),
        "trace_score": _mean(row.trace for row in sampled),
        "calibration_error": estimates.calibration_error(
            [row.certainty or 0.0 for row in sure], [row.strict or 0.0 for row in sure]
        ),
        "mean_tokens": float(lengths.mean()),
        "longest_tokens": int(lengths.max()),
        "truncated_rate": _mean(not row.completion.stopped for row in sampled),
        "failures": {kind: sum(row.failure == kind for row in wrong) / len(sampled) for kind in failures.KINDS},
        "by_difficulty": by(closed(sampled), lambda problem: problem.difficulty),
        "by_domain": by(sampled, lambda problem: problem.domain),
        "by_problem": [_pair(rows) for rows in by_problem],
        "samples": _shown(sampled, num_samples),
    }


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of per-problem scores (normal approximation, clipped to [0, 1]).

    Where all are the same that would be no interval at all: then Wilson's, with one trial a problem.
    """
    if len(scores) < 2:
        return (0.0, 1.0)
    mean, deviation = float(np.mean(scores)), float(np.std(scores, ddof=1))
    if not deviation:
        return estimates.wilson(mean, len(scores))
    half = 1.96 * deviation / math.sqrt(len(scores))
    return (max(0.0, mean - half), min(1.0, mean + half))


def closed(rows: Rows) -> list[marking.Marked]:
    """Those of problems with a single answer."""
    return [row for row in rows if not row.is_open]


def by(rows: Rows, group_of: Callable[[batch.Problem], str]) -> dict[str, float | None]:
    """How right the answers of each group are, leniently read; of open problems, what the rubric says."""
    groups: dict[str, list[marking.Marked]] = {}
    for row in rows:
        groups.setdefault(group_of(row.problem), []).append(row)
    return {name: _mean(row.lenient for row in group) for name, group in groups.items()}


def _answer(
    subject: policy.Policy,
    problems: Sequence[batch.Problem],
    *,
    stage: stages.Evaluate,
    key: jax.Array,
    temperature: float,
    samples: int,
    judge: code.Judge | None,
    check: Callable[[str], None],
) -> list[marking.Marked]:
    """Every problem's `samples` completions, problem by problem."""
    room = stage.max_new_tokens
    sampling = batch.Sampling.of(temperature=temperature, max_new_tokens=room)
    prompts = subject.prompts(problems)
    rollout = subject.sample(prompts, sampling, key, group=samples, room=room, pause=lambda: check(stage.name))
    check(stage.name)
    completions = subject.completions(rollout)
    asked = itertools.chain.from_iterable(itertools.repeat(problem, samples) for problem in problems)
    return marking.mark_all(list(zip(asked, completions, strict=True)), stage.form, judge)


def _pass_at(scores: Sequence[float], k: int) -> float:
    return estimates.pass_at(sum(score == 1 for score in scores), len(scores), k)


def _pair(rows: Rows) -> dict[str, Any]:
    """A problem as a gate compares it: the means over its samples."""
    problem = rows[0].problem
    return {
        "id": problem.id,
        "domain": problem.domain,
        "open": rows[0].is_open,
        "lenient": _mean(row.lenient for row in rows),
        "strict": _mean(row.strict for row in rows),
    }


def _mean(found: Iterable[float | None]) -> float | None:
    """Of what is known; None when nothing is."""
    known = [float(value) for value in found if value is not None]
    return math.fsum(known) / len(known) if known else None


def _share(rows: Rows) -> list[float]:
    share = _mean(row.lenient for row in rows)
    return list(estimates.wilson(share or 0.0, sum(row.lenient is not None for row in rows)))


def _shown(sampled: Rows, num_samples: int) -> list[dict[str, Any]]:
    """The first sample of the first few questions of each domain and difficulty."""
    seen: dict[tuple[str, str], int] = {}
    shown = []
    for first in sampled[::num_samples]:
        problem = first.problem
        level = (problem.domain, problem.difficulty)
        seen[level] = seen.get(level, 0) + 1
        if seen[level] <= NUM_SHOWN:
            shown.append(
                {
                    "question": problem.question,
                    "answer": problem.answer,
                    "domain": problem.domain,
                    "difficulty": problem.difficulty,
                    "completion": first.completion.text,
                    "score": first.lenient,
                    "correct": first.right,
                }
            )
    return shown
