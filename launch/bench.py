"""Checks, then figures: how fast the engine or a GPU's kernels are here, or what a TPU's are estimated to take.

python -m thinkfirst.launch.bench [--suite=engine] [--repeats=5] [--out=FILE.json]
python -m thinkfirst.launch.bench --suite=kernels [--cases=causal_g3_fwd]        (on a GPU)
python -m thinkfirst.launch.bench --suite=rollout --peer=tunix [--peer_env=.build/oracle_tunix]
python -m thinkfirst.launch.bench --suite=step --peer=tunix [--cases=long_tail]
python -m thinkfirst.launch.bench --suite=kernels --tpu_estimate=v5e [--cases=window_fwd,ring_decode] [--search]
"""

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
from thinkfirst.launch.benchmarks import (
    block_sizes,
    cycle_counts,
    cycle_table,
    engine,
    gpu,
    logprob,
    peer_process,
    rollouts,
    steps,
)


def define_flags() -> flags.FlagValues:
    """The command line."""
    line = flags.FlagValues()
    flags.DEFINE_enum("suite", "engine", ["engine", "kernels", "rollout", "step"], "what to measure", flag_values=line)
    flags.DEFINE_enum("peer", "", ["", "tunix"], "rollout, step: who takes turns with us", flag_values=line)
    flags.DEFINE_string("peer_env", peer_process.ENVIRONMENT, "rollout, step: the peer's environment", flag_values=line)
    flags.DEFINE_integer("repeats", 5, "timed runs of each side", lower_bound=1, flag_values=line)
    flags.DEFINE_list("tpu_estimate", [], f"kernels: chips to count for: {', '.join(chips.CHIPS)}", flag_values=line)
    flags.DEFINE_list("cases", [], "kernels, step: the cases to measure (default: all)", flag_values=line)
    flags.DEFINE_bool("peers", default=True, help="kernels: measure the peers too", flag_values=line)
    flags.DEFINE_bool("search", default=False, help="kernels: try block sizes, keep the best", flag_values=line)
    flags.DEFINE_string("report", "", "kernels: also put the table into this Markdown file", flag_values=line)
    flags.DEFINE_string("out", "", "also write the figures to this JSON file", flag_values=line)
    return line


def main(argv: list[str]) -> int:
    """Exit status: 0; 1 when a kernel could not be counted; 2 for bad flags and for a failed check."""
    line = define_flags()
    if "--help" in argv:
        print(f"{__doc__}\n{line.get_help()}")
        return 0
    try:
        if len(rest := line(argv)) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}")
        suites = {"kernels": _kernels, "engine": _engine, "rollout": _rollout, "step": _step}
        figures, status = suites[line.suite](line)
    except (ValueError, flags.Error, profile.Unavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if line.out:
        files.write_text(pathlib.Path(line.out), json.dumps(figures, indent=1) + "\n")
    return status


def _engine(line: flags.FlagValues) -> tuple[Any, int]:
    _reject(line, "tpu_estimate", "cases", "report", "search", "peer")
    runtime.split_cpu(2)
    figures = {"engine": engine.run(line.repeats), "token_logprob": logprob.run(line.repeats)}
    return {**figures, "repeats": line.repeats, "versions": runtime.versions()}, 0


def _rollout(line: flags.FlagValues) -> tuple[Any, int]:
    _reject(line, "tpu_estimate", "cases", "report", "search")
    return _beside_peer(line, "tunix_rollout.py", rollouts.run), 0


def _step(line: flags.FlagValues) -> tuple[Any, int]:
    _reject(line, "tpu_estimate", "report", "search")
    run = functools.partial(steps.run, cases=steps.named(line.cases))
    return _beside_peer(line, "tunix_step.py", run), 0


def _beside_peer(line: flags.FlagValues, script: str, run: Callable[[int, peer_process.Peer | None], Any]) -> Any:
    """Figures of both, or of ours alone where no peer is asked for or its environment is not installed."""
    runtime.split_cpu(2)
    if not line.peer:
        return run(line.repeats, None)
    try:
        peer = peer_process.Peer(peer_process.SCRIPTS / script, environment=line.peer_env)
    except peer_process.MissingError as error:
        print(error, file=sys.stderr)
        return run(line.repeats, None)
    with peer:
        return run(line.repeats, peer)


def _kernels(line: flags.FlagValues) -> tuple[Any, int]:
    _reject(line, "peer")
    if not line.tpu_estimate and placement.platform() == "gpu":
        _reject(line, "report", "search")
        return gpu.run(line.repeats, line.cases, peers=line.peers)
    if not line.tpu_estimate:
        raise ValueError(f"--suite=kernels needs --tpu_estimate: {', '.join(chips.CHIPS)}; or a GPU")
    if line.search:
        _reject(line, "report")
        return block_sizes.search(line.tpu_estimate, line.cases, blocks.FOLDER)
    report = pathlib.Path(line.report) if line.report else None
    if report:
        cycle_table.check(report)
    figures, status = cycle_counts.run(line.tpu_estimate, line.cases, peers=line.peers)
    if report:
        cycle_table.write(report, figures)
    return figures, status


def _reject(line: flags.FlagValues, *names: str) -> None:
    """ValueError for a flag that this suite would pass over in silence."""
    for name in names:
        if line[name].value:
            raise ValueError(f"--{name} means nothing here")


def cli() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
