"""Checks, then figures: how fast engine, learner, steps or kernels are here, beside plainer ways and other people's.

python -m thinkfirst.launch.bench [--suite=rollout,learner] [--repeats=5] [--out=FILE.json] [--compare=OLD.json]
python -m thinkfirst.launch.bench --suite=rollout --peer=tunix [--peer_env=.build/oracle_tunix]
python -m thinkfirst.launch.bench --suite=step --peer=tunix [--cases=long_tail]
python -m thinkfirst.launch.bench --suite=kernels [--cases=causal_g3_fwd]        (on a GPU)
python -m thinkfirst.launch.bench --suite=kernels --tpu_estimate=v5e [--cases=window_fwd,ring_decode] [--search]
python -m thinkfirst.launch.bench --suite=learning --peer=tunix --seeds=0,1,2 [--plot=FILE.png]   (hours)

The file of --out is a list of figures, each with suite, case, date, device and versions.
"""

import datetime
import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from thinkfirst.core import files, runtime
from thinkfirst.kernels import blocks, placement
from thinkfirst.kernels.cost import chips, profile
from thinkfirst.launch import recipes
from thinkfirst.launch.benchmarks import (
    block_sizes,
    compare,
    cycle_counts,
    cycle_table,
    gpu,
    learning,
    learning_curve,
    peer_process,
    rollouts,
    steps,
    updates,
)

Figures = list[dict[str, Any]]

TAKES = {
    "kernels": {"repeats", "cases", "peers", "tpu_estimate", "search", "report"},
    "rollout": {"repeats", "cases", "peer"},
    "learner": {"repeats", "cases"},
    "step": {"repeats", "cases", "peer"},
    "learning": {"peer", "seeds", "recipe", "every", "workdir", "plot"},
}
DEFAULT = ("rollout", "learner")


def define_flags() -> flags.FlagValues:
    """The command line."""
    line = flags.FlagValues()
    flags.DEFINE_list("suite", list(DEFAULT), f"what to measure: {', '.join(TAKES)}", flag_values=line)
    flags.DEFINE_enum("peer", "", ["", "tunix"], "rollout, step, learning: who takes turns with us", flag_values=line)
    flags.DEFINE_string("peer_env", peer_process.ENVIRONMENT, "the peer's environment", flag_values=line)
    flags.DEFINE_integer("repeats", 5, "timed runs of each side", lower_bound=1, flag_values=line)
    flags.DEFINE_list("tpu_estimate", [], f"kernels: chips to count for: {', '.join(chips.CHIPS)}", flag_values=line)
    flags.DEFINE_list("cases", [], "the cases to measure (default: all)", flag_values=line)
    flags.DEFINE_bool("peers", default=True, help="kernels: measure the peers too", flag_values=line)
    flags.DEFINE_bool("search", default=False, help="kernels: try block sizes, keep the best", flag_values=line)
    flags.DEFINE_string("report", "", "kernels: also put the table into this Markdown file", flag_values=line)
    flags.DEFINE_list("seeds", [], "learning: a run of each side for each (default: 0)", flag_values=line)
    flags.DEFINE_string("recipe", "", "learning: whose task, SFT and GRPO (default: demo)", flag_values=line)
    flags.DEFINE_integer("every", 0, "learning: steps between evaluations (default: 10)", flag_values=line)
    flags.DEFINE_string("workdir", "", "learning: where finished runs are kept (runs/learning)", flag_values=line)
    flags.DEFINE_string("plot", "", "learning: the picture (default: in the workdir)", flag_values=line)
    flags.DEFINE_string("compare", "", "an earlier file of --out: print old, new and new / old", flag_values=line)
    flags.DEFINE_float("worse", 0.0, "compare: exit status 1 if ours is so many times worse", flag_values=line)
    flags.DEFINE_string("out", "", "also write the figures to this JSON file", flag_values=line)
    return line


def main(argv: list[str]) -> int:
    """Exit status: 0; 1 for a kernel that could not be counted and for `--worse`; 2 for bad flags and failed checks."""
    line = define_flags()
    if "--help" in argv:
        print(f"{__doc__}\n{line.get_help()}")
        return 0
    try:
        if len(rest := line(argv)) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}")
        _check(line)
        old = compare.read(pathlib.Path(line.compare)) if line.compare else []
        figures, status = _measured(line)
    except (ValueError, flags.Error, profile.Unavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if line.out:
        files.write_text(pathlib.Path(line.out), json.dumps(figures, indent=1) + "\n")
    if line.compare:
        said, worse = compare.lines(old, figures, most=line.worse)
        print("\n".join([f"compared with {line.compare}:", *said]))
        status = status or int(worse)
    return status


def _check(line: flags.FlagValues) -> None:
    """ValueError for a suite there is none of, and for a flag that a suite would pass over in silence."""
    if unknown := [suite for suite in line.suite if suite not in TAKES]:
        raise ValueError(f"--suite={unknown[0]}: there is {', '.join(TAKES)}")
    if not line.suite:
        raise ValueError(f"--suite names nothing: there is {', '.join(TAKES)}")
    if line.cases and len(line.suite) > 1:
        raise ValueError("--cases are those of one suite: name it by --suite")
    if "learning" in line.suite and len(line.suite) > 1:
        raise ValueError("--suite=learning takes hours and stands alone")
    for name in sorted(set.union(*TAKES.values())):
        flag = line[name]
        if flag.present and flag.value != flag.default and not any(name in TAKES[suite] for suite in line.suite):
            raise ValueError(f"--{name} means nothing here")
    if line.worse and (line.worse < 1 or not line.compare):
        raise ValueError(f"--worse={line.worse}: takes --compare, and a number of at least 1, such as 1.1")


def _measured(line: flags.FlagValues) -> tuple[Figures, int]:
    """The figures of all suites, stamped, and the exit status."""
    suites: dict[str, Callable[[flags.FlagValues], tuple[Figures, int]]] = {
        "kernels": _kernels,
        "rollout": _rollout,
        "learner": _learner,
        "step": _step,
        "learning": _learning,
    }
    found, worst = [], 0
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    for suite in dict.fromkeys(line.suite):
        figures, status = suites[suite](line)
        worst = max(worst, status)
        for figure in figures:
            versions = figure.get("versions") or runtime.versions()
            device = figure.get("chip") or runtime.versions()["device"]
            found.append({"suite": suite, **figure, "date": date, "device": device, "versions": versions})
    return found, worst


def _rollout(line: flags.FlagValues) -> tuple[Figures, int]:
    chosen = rollouts.named(line.cases, rollouts.cases())
    return _beside_peer(line, "tunix_rollout.py", functools.partial(rollouts.run, cases=chosen)), 0


def _learner(line: flags.FlagValues) -> tuple[Figures, int]:
    runtime.split_cpu(2)
    return updates.run(line.repeats, names=line.cases), 0


def _step(line: flags.FlagValues) -> tuple[Figures, int]:
    chosen = rollouts.named(line.cases, steps.cases())
    return _beside_peer(line, "tunix_step.py", functools.partial(steps.run, cases=chosen)), 0


def _beside_peer(
    line: flags.FlagValues, script: str, run: Callable[[int, peer_process.Peer | None], Figures]
) -> Figures:
    """Figures of both, or of ours alone where no peer is asked for or its environment is not installed."""
    runtime.split_cpu(2)
    if (start := _starter(line, script)) is None:
        return run(line.repeats, None)
    with start() as peer:
        return run(line.repeats, peer)


def _starter(line: flags.FlagValues, script: str) -> Callable[[], peer_process.Peer] | None:
    """What starts the peer that is asked for; None, and a line that says so, where it is not installed."""
    if not line.peer:
        return None
    path = peer_process.SCRIPTS / script
    try:
        peer_process.python(path, line.peer_env)
    except peer_process.MissingError as error:
        print(error, file=sys.stderr)
        return None
    return functools.partial(peer_process.Peer, path, environment=line.peer_env)


def _learning(line: flags.FlagValues) -> tuple[Figures, int]:
    runtime.split_cpu(2)
    try:
        seeds = [int(seed) for seed in line.seeds or ["0"]]
    except ValueError as error:
        raise ValueError(f"--seeds={','.join(line.seeds)}: numbers, such as 0,1,2") from error
    if line.every < 0 or min(seeds) < 0:
        raise ValueError("--every and --seeds must not be negative")
    workdir = pathlib.Path(line.workdir or "runs/learning")
    task = learning.Task(recipes.named(line.recipe or "demo"), every=line.every or 10)
    runs = learning.run(task, workdir, seeds=seeds, start=_starter(line, learning.SCRIPT))
    figure = learning_curve.figure(task.config.recipe, runs)
    print("\n".join(learning_curve.lines(figure)))
    learning_curve.draw(runs, pathlib.Path(line.plot) if line.plot else workdir / "learning_comparison.png")
    versions = {side: next(iter(of.values()))["versions"] for side, of in runs.items()}
    return [{**figure, "versions": versions}], 0


def _kernels(line: flags.FlagValues) -> tuple[Figures, int]:
    if not line.tpu_estimate and placement.platform() == "gpu":
        for name in ("report", "search"):
            if line[name].value:
                raise ValueError(f"--{name} means nothing here")
        return gpu.run(line.repeats, line.cases, peers=line.peers)
    if not line.tpu_estimate:
        raise ValueError(f"--suite=kernels needs --tpu_estimate: {', '.join(chips.CHIPS)}; or a GPU")
    if line.search:
        if line.report:
            raise ValueError("--report means nothing here")
        return block_sizes.search(line.tpu_estimate, line.cases, blocks.FOLDER)
    report = pathlib.Path(line.report) if line.report else None
    if report:
        cycle_table.check(report)
    figures, status = cycle_counts.run(line.tpu_estimate, line.cases, peers=line.peers)
    if report:
        cycle_table.write(report, figures)
    return figures, status


def cli() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
