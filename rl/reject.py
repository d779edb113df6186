"""Rejection sampling: the policy's own traces, graded, and the best of those that are right kept as data to imitate.

One part of the problems at a time is sampled, graded and written to a file of its own, so a run that is cut short goes
on with the next part.  What a part holds is a function of the seed and of the policy alone.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from thinkfirst.core import files, hosts
from thinkfirst.rl import batch, policy, samples, shares, stages
from thinkfirst.rl.data import source
from thinkfirst.rl.rewards import reward


def traces(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Where the traces that the stage of this name kept lie, as rows that the reader `replay` takes."""
    return workdir / "traces" / f"{name}.jsonl"


def run(
    subject: policy.Policy,
    stage: stages.Reject,
    problems: source.Source,
    root: jax.Array,
    *,
    grade: samples.Grader,
    workdir: pathlib.Path,
    check: Callable[[str], None],
) -> dict[str, Any]:
    """Writes the traces; returns how many there are.  `check` is called between parts and may raise."""
    sample = lambda asked: _sampled(subject, stage, asked, root, grade, check=check)  # noqa: E731
    return collect(stage, problems, sample, traces(workdir, stage.name), check)


def collect(
    stage: stages.Reject,
    problems: source.Source,
    sample: Callable[[Sequence[batch.Problem]], list[tuple[batch.Problem, str]]],
    whole: pathlib.Path,
    check: Callable[[str], None],
) -> dict[str, Any]:
    """What `run` does, given how the kept traces of a part of the problems are come by."""
    asked = list(_asked(stage, problems))
    parts = [asked[i : i + stage.prompts] for i in range(0, len(asked), stage.prompts)]
    written = [whole.with_suffix("") / f"{number}.jsonl" for number in range(len(parts))]
    for part, path in zip(parts, written, strict=True):
        if hosts.told(path.is_file):
            continue
        check(f"{stage.name}: {path.name}")
        rows = files.json_lines(_row(*kept) for kept in sample(part))
        if hosts.is_first():
            files.write_text(path, rows)
    rows = hosts.told(lambda: "".join(path.read_text() for path in written))
    if hosts.is_first():
        files.write_text(whole, rows)
    kept = files.parse_json_lines(rows, str(whole))
    by_domain: dict[str, int] = {}
    for row in kept:
        by_domain[row.fields["domain"]] = by_domain.get(row.fields["domain"], 0) + 1
    return {"problems": len(asked), "samples": len(asked) * stage.samples, "kept": len(kept), "by_domain": by_domain}


def best(
    completions: Sequence[batch.Completion], graded: Sequence[reward.Graded], *, keep: int, least: float
) -> list[str]:
    """The texts of the best samples of one problem: right enough, in the form asked for, no two the same."""
    fit = {
        completion.text: grade.total
        for completion, grade in zip(completions, graded, strict=True)
        if grade.total is not None and grade.parts.get("format") == 1 and _merit(grade) >= least
    }
    return sorted(fit, key=lambda text: -fit[text])[:keep]


def _merit(grade: reward.Graded) -> float:
    """How right it is, or what the rubric says where there is no single answer."""
    merit = grade.parts.get("rubric", grade.parts.get("correctness"))
    return -1.0 if merit is None else merit


def _asked(stage: stages.Reject, problems: source.Source) -> Iterator[batch.Problem]:
    """The first problems of the line; one that comes again in the next epoch is not asked again."""
    seen: set[str] = set()
    levels = stage.difficulties
    for index in range(stage.problems):
        turn = index // len(levels) if problems.counts_by_difficulty else index
        problem = problems.problem(turn, levels[index % len(levels)])
        if problem.id not in seen:
            seen.add(problem.id)
            yield problem


def _sampled(
    subject: policy.Policy,
    stage: stages.Reject,
    asked: Sequence[batch.Problem],
    root: jax.Array,
    grade: samples.Grader,
    *,
    check: Callable[[str], None],
) -> list[tuple[batch.Problem, str]]:
    """The kept traces of some problems."""
    room = stage.max_new_tokens
    sampling = batch.Sampling.of(temperature=stage.temperature, max_new_tokens=room)
    prompts = subject.prompts(asked)
    pause = lambda: check(f"{stage.name}: sampling")  # noqa: E731
    rollout = subject.sample(prompts, sampling, root, group=stage.samples, room=room, pause=pause)
    completions = subject.completions(rollout)
    rows = [(asked[row // stage.samples], found) for row, found in enumerate(completions)]
    graded = shares.graded(grade, rows, group=stage.samples, step=1, phase="")
    kept = []
    for place, problem in enumerate(asked):
        part = slice(place * stage.samples, (place + 1) * stage.samples)
        kept += [(problem, text) for text in best(completions[part], graded[part], keep=stage.keep, least=stage.least)]
    return kept


def _row(problem: batch.Problem, completion: str) -> dict[str, Any]:
    """A row of the reader `replay`."""
    found: dict[str, Any] = {"question": problem.question, "answer": problem.answer, "domain": problem.domain}
    found |= {"difficulty": problem.difficulty, "completion": completion}
    if problem.choices:
        found["choices"] = list(problem.choices)
    if problem.tests:
        found["tests"] = list(problem.tests)
    return found
