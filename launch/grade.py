"""Every part of the reward of given completions: a reward tried without a model.

    python -m thinkfirst.launch.grade --input=ROWS.jsonl --out=GRADES.jsonl --pipeline=show_work|think_first

A row is {"completion", "answer", "domain"} and, where there are any, "question", "choices", "tests", "difficulty",
"stopped" (false: cut off), and of its tokens "spans" ([begin, end] in the text) and "logprobs".  "answer" may be left
out where there are tests, or no single answer (open, creative, summary, dialogue).  The rows of a run's
completions.jsonl are such rows.

A row out is the row in with

    extracted      what was judged as the answer          trace         numbered steps (show_work)
    correctness    how right it is                        confidence    calibration (show_work, with "logprobs")
    structure      the four sections (think_first)        verbosity     length beyond its allowance, with "spans"
    format         1 in the form asked for, else 0        total         the reward, at the weights of --step
    parts          every score the pipeline gives, those of the rubric and of --reward functions too

null where it does not apply.  --set reaches the weights: trace.start=0.5 of show_work, math.merit=0.7 of think_first.
show_work's total leaves out what is null.  think_first's is null where nobody can say
how right the answer is, as of a program: this command runs none.
"""

import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from thinkfirst.core import config, files
from thinkfirst.launch import opening, rows, show_work
from thinkfirst.rl import batch, grading, stages
from thinkfirst.rl.rewards import composite, domains, reward

COLUMNS = ("correctness", "structure", "format", "trace", "confidence", "verbosity")
SHOW_WORK_STEPS = 200
_KINDS: Mapping[str, type] = {
    "completion": str, "answer": str, "domain": str, "question": str, "difficulty": str,
    "stopped": bool, "choices": list, "tests": list, "spans": list, "logprobs": list,
}  # fmt: skip


def define_flags() -> flags.FlagValues:
    """The command line."""
    line = flags.FlagValues()
    flags.DEFINE_string("input", None, "JSONL file of rows, or - for standard input", flag_values=line, required=True)
    flags.DEFINE_string("out", None, "JSONL file to write", flag_values=line, required=True)
    flags.DEFINE_enum(
        "pipeline", None, ["show_work", "think_first"], "whose reward it is", flag_values=line, required=True
    )
    flags.DEFINE_multi_string("set", [], "key=value: changes one weight; may be repeated", flag_values=line)
    flags.DEFINE_integer("step", 1, "training step, on which the weights depend", lower_bound=1, flag_values=line)
    flags.DEFINE_multi_string("reward", [], "module:function or 0.1*module:function; repeatable", flag_values=line)
    flags.DEFINE_float("reward_seconds", 60.0, "deadline of each such function", flag_values=line)
    return line


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 2 for input that cannot be used."""
    return opening.main(argv, define_flags(), __doc__ or "", _grade)


def _grade(line: flags.FlagValues) -> None:
    schedule: stages.RewardSchedule | stages.ThinkFirstRewards = (
        show_work.rewards(over=SHOW_WORK_STEPS) if line.pipeline == "show_work" else stages.ThinkFirstRewards()
    )
    pipeline = _pipeline(config.override(schedule, line.set))
    asked = rows.read(line.input)
    print(f"reads {line.input} ({len(asked)} rows), writes {line.out} ({line.pipeline})", flush=True)
    pairs = [_pair(row) for row in asked]
    grader = grading.Grader(pipeline, line.reward, seconds=line.reward_seconds)
    try:
        graded = grader(pairs, step=line.step, phase="")
    finally:
        grader.close()
    files.write_text(pathlib.Path(line.out), files.json_lines(map(_row, asked, graded)))
    print(_summary(graded))


def _pipeline(schedule: stages.RewardSchedule | stages.ThinkFirstRewards) -> reward.Reward:
    """The pipeline's reward, which in show_work makes do without tokens."""
    pipeline = grading.pipeline(schedule)

    def graded(completion: batch.Completion, problem: batch.Problem, *, step: int, phase: str) -> reward.Graded:
        if isinstance(schedule, stages.RewardSchedule) and not completion.logp:
            return composite.grade_text(completion, problem, grading.composite_weights(schedule, step))
        return pipeline(completion, problem, step=step, phase=phase)

    return graded


def _pair(row: rows.Row) -> tuple[batch.Problem, batch.Completion]:
    """What a row says, checked.  The problem is called by the row's place, so that every later error names it."""
    fields = row.fields
    needless = fields.get("tests") or domains.NAMES.get(str(fields.get("domain"))) == "open"
    for name in ("completion", "domain", *([] if needless else ["answer"])):
        if name not in fields:
            raise ValueError(f"{row.place}: needs {name!r}, has {', '.join(fields) or 'nothing'}")
    for name, kind in _KINDS.items():
        if name in fields and not isinstance(fields[name], kind):
            wanted = {str: "text", bool: "true or false", list: "a list"}[kind]
            raise ValueError(f"{row.place}: {name} must be {wanted}, not {_shown(fields[name])}")
    for name in ("choices", "tests"):
        for place, item in enumerate(fields.get(name, ())):
            if not isinstance(item, str):
                raise ValueError(f"{row.place}: {name}[{place}] must be text, not {_shown(item)}")
    problem = batch.Problem(
        id=row.place,
        question=fields.get("question", ""),
        answer=fields.get("answer", ""),
        domain=fields["domain"],
        choices=tuple(fields.get("choices", ())),
        difficulty=fields.get("difficulty", "medium"),
        tests=tuple(fields.get("tests", ())),
    )
    spans = _spans(row)
    logp = _logp(row, len(spans)) if spans else ()
    return problem, batch.Completion(fields["completion"], spans, logp, fields.get("stopped", True))


def _spans(row: rows.Row) -> tuple[tuple[int, int], ...]:
    """Where the tokens stand in the text."""
    spans, length = row.fields.get("spans", []), len(row.fields["completion"])
    for place, span in enumerate(spans):
        fine = isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)
        if not fine or not 0 <= span[0] <= span[1] <= length:
            raise ValueError(f"{row.place}: spans[{place}]={_shown(span)} is no [begin, end] in 0..{length}")
    return tuple((begin, end) for begin, end in spans)


def _logp(row: rows.Row, count: int) -> tuple[float, ...]:
    """The tokens' log-probabilities; none where the row has none."""
    logp = row.fields.get("logprobs", [])
    for place, value in enumerate(logp):
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{row.place}: logprobs[{place}]={_shown(value)} is no number")
    if logp and len(logp) != count:
        raise ValueError(f"{row.place}: {len(logp)} logprobs for {count} spans")
    return tuple(map(float, logp))


def _row(row: rows.Row, grade: reward.Graded) -> dict[str, Any]:
    """A row out."""
    columns = {name: grade.parts.get(name) for name in COLUMNS}
    return {**row.fields, "extracted": grade.extracted, **columns, "total": grade.total, "parts": dict(grade.parts)}


def _shown(value: object) -> str:
    return json.dumps(value)[:80]


def _summary(graded: Sequence[reward.Graded]) -> str:
    """Means over the rows that each applies to."""
    scores = {"total": [grade.total for grade in graded]}
    scores |= {name: [grade.parts.get(name) for grade in graded] for name in COLUMNS}
    known = {name: [value for value in values if value is not None] for name, values in scores.items()}
    means = (f"{name} {sum(values) / len(values):.4f} of {len(values)}" for name, values in known.items() if values)
    return ", ".join([f"{len(graded)} rows; means: {next(means, 'none')}", *means])


def cli() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
