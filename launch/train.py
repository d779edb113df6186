"""Runs a recipe's stages; goes on by itself where the workdir holds a run that was cut short.

python -m thinkfirst.launch.train --recipe=demo [--set key=value ...] [--workdir=DIR] [--max_steps=N]
"""

import pathlib
import sys

from absl import flags

from thinkfirst.core import config, runtime
from thinkfirst.launch import recipes
from thinkfirst.rl import guard, loop, pipeline, report, stages


def define_flags() -> flags.FlagValues:
    """The command line."""
    line = flags.FlagValues()
    flags.DEFINE_string("recipe", None, "name of a function in launch/recipes.py", flag_values=line, required=True)
    flags.DEFINE_multi_string("set", [], "key=value: changes one setting; may be repeated", flag_values=line)
    flags.DEFINE_string("workdir", "", "where the run is kept (default runs/<recipe>)", flag_values=line)
    flags.DEFINE_integer("max_steps", 0, "stop after this many steps of this call (0: no limit)", flag_values=line)
    flags.DEFINE_float("max_seconds", 0.0, "stop after this many seconds (0: no limit)", flag_values=line)
    return line


def main(argv: list[str]) -> int:
    """Exit status: 0 done or cut short as asked, 1 stopped by bad steps, 2 for input that cannot be used."""
    line = define_flags()
    if "--help" in argv:
        print(f"{__doc__}\n{line.get_help()}\n\nrecipes: {', '.join(recipes.RECIPES)}")
        return 0
    try:
        if len(rest := line(argv)) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}")
        return _train(line)
    except guard.TooManyBadSteps as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, flags.Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _train(line: flags.FlagValues) -> int:
    chosen = config.override(recipes.named(line.recipe), line.set)
    workdir = pathlib.Path(line.workdir or f"runs/{chosen.recipe}")
    budget = runtime.Budget(max_steps=line.max_steps, max_seconds=line.max_seconds)
    runtime.split_cpu(chosen.cpu_devices)
    runtime.use_compile_cache()
    print(f"recipe {chosen.recipe}, seed {chosen.seed}: reads {_inputs(chosen)}; writes {workdir}/", flush=True)
    for note in chosen.notes:
        print("  " + note.format(slip_share=chosen.data.slip_share))
    try:
        results = pipeline.run(chosen, workdir, budget)
    except loop.OutOfBudget:
        print(f"stopped as asked; the same command goes on from here ({workdir})")
        return 0
    print("\n" + report.summary_table(results))
    print("\n".join(_showcase(results)))
    print(f"\n{workdir}/report.html  {workdir}/plots/learning_curves.png  {workdir}/final_results.json")
    return 0


def _inputs(chosen: stages.RunConfig) -> str:
    paths = [chosen.checkpoint, chosen.tokenizer, chosen.data.train, chosen.data.eval]
    return ", ".join(path for path in paths if path) or "nothing"


def _showcase(results: dict) -> list[str]:
    """One held-out question of each difficulty with every stage's completion."""
    lines: list[str] = []
    seen: set[str] = set()
    for place, sample in enumerate(results["evaluations"][0]["samples"] if results["evaluations"] else []):
        if sample["difficulty"] in seen:
            continue
        seen.add(sample["difficulty"])
        lines += ["", f"[{sample['difficulty']}] {sample['question']}  (answer: {sample['answer']})"]
        for evaluation in results["evaluations"]:
            shown = evaluation["samples"][place]
            mark = "right" if shown["correct"] else "wrong"
            lines.append(f"  {evaluation['stage']:>5} {mark}: {shown['completion']!r}")
    return lines


def cli() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
