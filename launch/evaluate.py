"""How good a model is on given problems: pass@k, maj@k, strict and lenient, form, calibration, kinds of failure.

    python -m thinkfirst.launch.evaluate --checkpoint=FOLDER --problems=FILE [--out=RESULT.json] [--reader=gsm8k]

FILE holds rows {question, answer, domain?, choices?, difficulty?, tests?} (--reader=jsonl), or is what another reader
of docs/data.md takes.  The model is a Hugging Face folder, an Orbax checkpoint or a run's workdir, which brings its
instruction along; other models are told with --instruction, or by the name of a pipeline with --pipeline.

    accuracy   mean over problems and samples, leniently read: the answer block, or else what looks most like an answer
    strict     the same, from well-formed completions only
    pass@k     the chance that one of k samples is right, without bias from --samples=n of them
    maj@k      how right the most frequent of k answers is
    format     in the form asked for; trace: steps or sections that say something, 0 to 1
    ECE        expected calibration error of the probability of the answer's tokens

Intervals are of 95 %.  Problems with `tests` are programs; they run in the sandbox.  With --before=RESULT.json, the
result of another model on the same problems, each problem is compared with itself.
"""

import json
import pathlib
import sys
from typing import Any

import jax
from absl import flags

from thinkfirst.core import files
from thinkfirst.launch import judging, opening, show_work, think_first
from thinkfirst.rl import batch, evaluate, gate, stages
from thinkfirst.rl.data import mix, suite

REQUESTS = {"show_work": show_work.FORMAT_REQUEST, "think_first": think_first.FORMAT_REQUEST, "none": ""}


def define_flags() -> flags.FlagValues:
    """The command line."""
    line = opening.define_flags()
    flags.DEFINE_string("problems", "", "file or folder of problems", flag_values=line)
    flags.DEFINE_enum("reader", "jsonl", sorted(mix.READERS), "how the problems are read", flag_values=line)
    flags.DEFINE_bool("suite", default=False, help="ask the twenty built-in questions instead", flag_values=line)
    flags.DEFINE_integer("count", 0, "only the first so many problems (0: all)", lower_bound=0, flag_values=line)
    flags.DEFINE_integer("samples", 4, "of each problem", lower_bound=1, flag_values=line)
    flags.DEFINE_float("temperature", 1.0, "of the samples; there is a greedy answer too", flag_values=line)
    flags.DEFINE_integer("max_new_tokens", 512, "of a completion", lower_bound=1, flag_values=line)
    flags.DEFINE_integer("max_prompt_tokens", 1024, "longer prompts are an error", lower_bound=1, flag_values=line)
    flags.DEFINE_integer("seed", 0, "of the samples", lower_bound=0, flag_values=line)
    flags.DEFINE_enum(
        "pipeline", "show_work", list(REQUESTS), "whose format is asked for and looked for", flag_values=line
    )
    flags.DEFINE_string("instruction", None, "instead of the pipeline's, or of the run's", flag_values=line)
    flags.DEFINE_string("before", "", "a result of another model, to compare with problem by problem", flag_values=line)
    flags.DEFINE_string("out", "", "write the result here too, as JSON", flag_values=line)
    return line


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 2 for input that cannot be used."""
    return opening.main(argv, define_flags(), __doc__ or "", _evaluate)


def _evaluate(line: flags.FlagValues) -> None:
    problems, place = _problems(line)
    before = _result(line.before) if line.before else None
    print(f"reads {place} ({len(problems)} problems); writes {line.out or 'nothing'}", flush=True)
    with judging.judge(needed=any(problem.tests for problem in problems)) as judge:
        subject = opening.open_policy(line)
        subject.max_prompt_tokens = line.max_prompt_tokens
        if line.instruction is not None:
            subject.instruction = line.instruction
        elif not (pathlib.Path(line.checkpoint or line.workdir) / "progress.json").is_file():
            subject.instruction = REQUESTS[line.pipeline]
        stage = stages.Evaluate(
            label=str(line.checkpoint or line.workdir),
            name="evaluate",
            samples=line.samples,
            temperature=line.temperature,
            max_new_tokens=line.max_new_tokens,
            form="sections" if line.pipeline == "think_first" else "steps",
        )
        found = evaluate.evaluate(subject, problems, stage, jax.random.key(line.seed), judge)
    if before is not None:
        usual = stages.Gate()
        found["compared"] = gate.decide(before, found, metrics=usual.metrics, level=usual.level)
    print("\n".join(lines(found)))
    if line.out:
        files.write_text(pathlib.Path(line.out), json.dumps(found, indent=1) + "\n")


def _problems(line: flags.FlagValues) -> tuple[list[batch.Problem], str]:
    """(the problems, where they are from)."""
    if line.suite == bool(line.problems):
        raise ValueError("name the problems: --problems=FILE or --suite")
    if line.suite:
        return suite.problems(), "the built-in questions"
    found = [row.problem for row in mix.READERS[line.reader](line.problems)]
    found = list({problem.id: problem for problem in found}.values())
    if not found:
        raise ValueError(f"{line.problems} holds no problems")
    return found[: line.count or None], line.problems


def _result(path: str) -> dict[str, Any]:
    """A result that --out wrote."""
    try:
        found = json.loads(pathlib.Path(path).read_text())
        return {"stage": found["stage"], "by_problem": found["by_problem"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no result of thinkfirst-evaluate: {error}") from error


def lines(found: dict[str, Any]) -> list[str]:
    """What is printed."""
    how = f"{found['num_samples']} samples each at temperature {found['temperature']:g}"
    shown = [f"{found['problems']} problems, {how}"]
    shown += [
        f"  accuracy  {_number(found['accuracy'])} ({_between(found['accuracy_interval'])}), strict "
        f"{_number(found['accuracy_strict'])}, greedy {_number(found['accuracy_greedy'])} "
        f"({_between(found['accuracy_greedy_interval'])})"
    ]
    for name in ("pass_at", "maj_at"):
        values = ", ".join(f"@{k} {_number(value)}" for k, value in found[name].items())
        shown.append(f"  {name.removesuffix('_at'):<9} {values}")
    shown += [
        f"  format    {_number(found['format_rate'])} ({_between(found['format_interval'])}), trace "
        f"{_number(found['trace_score'])}, ECE {_number(found['calibration_error'])}",
        f"  tokens    {found['mean_tokens']:.1f} on average, {found['longest_tokens']} at most, cut off "
        f"{_number(found['truncated_rate'])}",
    ]
    if found["rubric"] is not None:
        shown.append(f"  rubric    {_number(found['rubric'])} on problems without a single answer")
    for name in ("by_domain", "by_difficulty", "failures"):
        held = {key: value for key, value in found[name].items() if value != 0 or name != "failures"}
        values = ", ".join(f"{key} {_number(value)}" for key, value in held.items())
        shown.append(f"  {name.removeprefix('by_'):<10}{values or 'none'}")
    if "compared" in found:
        shown += gate.lines("before and after, as a gate would judge", found["compared"])
    return shown


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _between(ends: list[float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def cli() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
