"""Runs a recipe's stages; goes on by itself where the workdir holds a run that was cut short.

python -m thinkfirst.launch.train --recipe=demo [--set key=value ...] [--workdir=DIR] [--max_steps=N]

Every host of a slice runs the same command; the first one writes the workdir.  docs/reliability.md says what happens
when something goes wrong, and launch/restart.py what the exit status means.
"""

import os
import pathlib
import sys
import traceback
from collections.abc import Callable

import jax
from absl import flags

from thinkfirst.core import config, hosts, mirror, profiling, runtime, watchdog
from thinkfirst.launch import judging, recipes, restart
from thinkfirst.rl import gate, guard, loop, pipeline, report, stages
from thinkfirst.rl.data import source
from thinkfirst.rl.rewards import code


def define_flags() -> flags.FlagValues:
    """The command line."""
    line = flags.FlagValues()
    flags.DEFINE_string("recipe", None, "name of a function in launch/recipes.py", flag_values=line, required=True)
    flags.DEFINE_multi_string("set", [], "key=value: changes one setting; may be repeated", flag_values=line)
    about = "where the run is kept: a folder, or a URL such as gs://bucket/run (default runs/<recipe>)"
    flags.DEFINE_string("workdir", "", about, flag_values=line)
    flags.DEFINE_integer("max_steps", 0, "stop after this many steps of this call (0: no limit)", flag_values=line)
    flags.DEFINE_float("max_seconds", 0.0, "stop after this many seconds (0: no limit)", flag_values=line)
    flags.DEFINE_string("profile_steps", "", "FIRST:STOP: profiles these steps (docs/profiling.md)", flag_values=line)
    flags.DEFINE_integer("profile_server", 0, "port at which xprof may ask for a profile (0: none)", flag_values=line)
    flags.DEFINE_integer("restarts", 0, "start again after a crash, until so many got no further", flag_values=line)
    flags.DEFINE_float("hang_seconds", 1800.0, "end a step's part that takes longer (0: never)", flag_values=line)
    flags.DEFINE_integer("heartbeat_seconds", 60, "a host silent for so long is taken for dead", flag_values=line)
    flags.DEFINE_string("coordinator", "", "host:port of process 0, where JAX cannot find it out", flag_values=line)
    flags.DEFINE_integer("num_processes", 1, "processes of the run; with --coordinator", flag_values=line)
    flags.DEFINE_integer("process", 0, "which of them this is; with --coordinator", flag_values=line)
    return line


def main(argv: list[str], *, connect: Callable[..., None] | None = None) -> int:
    """The exit status, as launch/restart.py lists them.  `connect` joins the processes of the run (core/hosts.py)."""
    line = define_flags()
    if "--help" in argv:
        print(f"{__doc__}\n{line.get_help()}\n\nrecipes: {', '.join(recipes.RECIPES)}")
        return 0
    try:
        if len(rest := line(argv)) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}")
        if line.restarts:
            return _supervised(line, argv)
        return _train(line, connect)
    except guard.TooManyBadSteps as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: out of memory: {str(error).splitlines()[0] if str(error) else error!r}", file=sys.stderr)
        print(
            "thinkfirst-plan weighs the recipe for a slice and names the largest micro-batch; more micro_batches, "
            "remat=full, fewer lanes and a longer fsdp axis need less",
            file=sys.stderr,
        )
        return 1
    except (ValueError, flags.Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def asked_for(line: flags.FlagValues) -> tuple[stages.RunConfig, pathlib.Path]:
    """(the recipe as the flags change it, its workdir on this machine)."""
    chosen = config.override(recipes.named(line.recipe), line.set)
    if mirror.is_url(line.workdir):
        return chosen, mirror.local_copy(line.workdir)
    return chosen, pathlib.Path(line.workdir or f"runs/{chosen.recipe}")


def _supervised(line: flags.FlagValues, argv: list[str]) -> int:
    """The same command in a process of its own, started again after a crash."""
    _, workdir = asked_for(line)
    command = [sys.executable, "-m", "thinkfirst.launch.train", *argv[1:], "--restarts=0"]
    return restart.supervise(command, fruitless=line.restarts, progress=lambda: restart.saved_in(workdir))


def _train(line: flags.FlagValues, connect: Callable[..., None] | None) -> int:
    chosen, workdir = asked_for(line)
    budget = runtime.Budget(max_steps=line.max_steps, max_seconds=line.max_seconds)
    runtime.split_cpu(chosen.cpu_devices)
    steps = profiling.parse_steps(line.profile_steps)
    profiling.check_port(line.profile_server)
    runtime.use_compile_cache(scopes=bool(steps))
    watchdog.start(budget, line.hang_seconds)
    problems = source.make(chosen.data, chosen.seed)
    with judging.judge(needed=problems.runs_code) as judge:  # before anything of JAX starts
        if connect is not None:
            connect(line.coordinator, line.num_processes, line.process, heartbeat_seconds=line.heartbeat_seconds)
        profiling.serve(line.profile_server)
        copy = mirror.Mirror(line.workdir, workdir) if mirror.is_url(line.workdir) else None
        profiled = profiling.Window(workdir, steps)
        return _run(chosen, workdir, budget, problems=problems, judge=judge, copy=copy, profiled=profiled)


def _run(
    chosen: stages.RunConfig,
    workdir: pathlib.Path,
    budget: runtime.Budget,
    *,
    problems: source.Source,
    judge: code.Judge | None,
    copy: mirror.Mirror | None,
    profiled: profiling.Window,
) -> int:
    """The exit status of the run itself."""
    place = f"{workdir}/" if copy is None else f"{workdir}/, copied to {copy.url}"
    print(f"recipe {chosen.recipe}, seed {chosen.seed}: reads {_inputs(chosen)}; writes {place}", flush=True)
    for note in chosen.notes:
        print("  " + note.format(slip_share=chosen.data.slip_share))
    try:
        results = pipeline.run(chosen, workdir, budget, problems=problems, judge=judge, copy=copy, profiled=profiled)
    except loop.OutOfBudget:
        why = "told to end" if budget.preempted else "stopped as asked"
        print(f"{why}; the same command goes on from here ({workdir})", flush=True)
        return restart.PREEMPTED if budget.preempted else 0
    finally:
        profiled.end()
    if not hosts.is_first():
        return 0
    print("\n" + report.summary_table(results))
    for row in results["gates"]:
        print("\n".join(["", *gate.lines(row["name"], row)]))
    print("\n".join(_showcase(results)))
    print(f"\n{workdir}/report.html  {workdir}/plots/learning_curves.png  {workdir}/final_results.json")
    return 0


def _inputs(chosen: stages.RunConfig) -> str:
    paths = [chosen.checkpoint, chosen.tokenizer]
    for data in (chosen.data, *(stage.data for stage in chosen.stages if isinstance(stage, stages.Distill))):
        paths += [data.train, data.eval, *(path for part in data.parts for path in (part.train, part.eval))]
    return ", ".join(path for path in paths if path) or "nothing"


def _showcase(results: dict) -> list[str]:
    """One held-out question of each domain and difficulty with every stage's completion."""
    lines: list[str] = []
    seen: set[str] = set()
    for place, sample in enumerate(results["evaluations"][0]["samples"] if results["evaluations"] else []):
        level = f"{sample['domain']}, {sample['difficulty']}"
        if level in seen:
            continue
        seen.add(level)
        lines += ["", f"[{level}] {sample['question']}  (answer: {sample['answer']})"]
        for evaluation in results["evaluations"]:
            shown = evaluation["samples"][place]
            score = shown["score"]
            mark = "right" if shown["correct"] else "wrong" if not score else f"{score:.2f}"
            lines.append(f"  {evaluation['stage']:>8} {mark}: {shown['completion']!r}")
    return lines


def cli() -> None:
    """Console script."""
    status = watchdog.EXIT_STATUS  # that of whatever error nobody expected
    try:
        status = main(sys.argv, connect=hosts.connect)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last save", file=sys.stderr)
        status = 130
    finally:
        if status == watchdog.EXIT_STATUS:
            traceback.print_exc()
        if status not in (0, restart.PREEMPTED) and hosts.several():
            sys.stderr.flush()
            os._exit(status)  # an orderly end would wait for the other hosts, which wait for this one
        sys.exit(status)


if __name__ == "__main__":
    cli()
