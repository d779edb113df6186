"""Launches thinkfirst-train on every worker of a TPU slice, follows it, fetches what it wrote, deletes the slice.

python -m thinkfirst.launch.pod --target=tpu_vm --name=mine --zone=us-west4-a --accelerator=v5litepod-16 \\
    --wheel=dist/thinkfirst-0.1.0-py3-none-any.whl --bring=gs://bucket/gemma-3-1b-it [--dry_run] \\
    -- --recipe=show_work_gemma3_1b --set checkpoint=gemma-3-1b-it --workdir=gs://bucket/run

What follows -- are thinkfirst-train's flags.  --dry_run prints the shell that would be run, and runs nothing: it is a
script of its own.  The first step that fails ends the launch, and what deletes the slice is said.  docs/pods.md
"""

import subprocess
import sys
from collections.abc import Callable, Sequence

from absl import flags

from thinkfirst.launch import train
from thinkfirst.launch.targets import compute, gke, job, local, tpu_vm

TARGETS: dict[str, Callable[[job.Job], tuple[job.Step, ...]]] = {
    "compute": compute.steps,
    "tpu_vm": tpu_vm.steps,
    "gke": gke.steps,
    "local": local.steps,
}
STRICT = "set -euo pipefail"


def define_flags() -> flags.FlagValues:
    """The command line."""
    line = flags.FlagValues()
    about = "Compute Engine, the Cloud TPU API, Kubernetes by XPK, or processes of this machine"
    flags.DEFINE_enum("target", None, list(TARGETS), about, flag_values=line, required=True)
    flags.DEFINE_string("name", None, "of whatever is made, and of the launch", flag_values=line, required=True)
    flags.DEFINE_string("zone", "", "of Google Cloud", flag_values=line)
    flags.DEFINE_string("project", "", "of Google Cloud (default: gcloud's own)", flag_values=line)
    about = "v5litepod-16 (tpu_vm, gke), a machine type as ct6e-standard-4t (compute), or cpu-8 (local)"
    flags.DEFINE_string("accelerator", "", about, flag_values=line)
    flags.DEFINE_string("topology", "", "of the slice, such as 4x4 (compute)", flag_values=line)
    flags.DEFINE_string("cluster", "", "one that is there already (gke)", flag_values=line)
    flags.DEFINE_integer("hosts", 2, "how many processes (local)", flag_values=line)
    flags.DEFINE_bool("spot", default=True, help="VMs that may be taken away, for less", flag_values=line)
    flags.DEFINE_string("wheel", "", "that every worker installs; `make wheel` builds it", flag_values=line)
    flags.DEFINE_multi_string("bring", [], "URL of a folder that every worker needs; repeatable", flag_values=line)
    flags.DEFINE_list("steps", list(job.STEPS), "some of them, such as follow,collect,delete", flag_values=line)
    flags.DEFINE_bool("dry_run", default=False, help="print what would be run", flag_values=line)
    return line


def main(argv: list[str]) -> int:
    """The exit status: that of the first step that failed, which may be the run's own; 2 for unusable input."""
    line = define_flags()
    if "--help" in argv:
        print(f"{__doc__}\n{line.get_help()}")
        return 0
    try:
        _, *rest = line(argv)
        steps = _steps(line, rest)
    except (ValueError, flags.Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    chosen = tuple(step for step in steps if step.name in line.steps)
    if line.dry_run:
        print(script(chosen), end="")
        return 0
    return run(chosen, delete=steps[-1])


def script(steps: Sequence[job.Step]) -> str:
    """The steps as one bash script; each in a shell of its own, as `run` has it."""
    parts = [f"# {step.name}: {step.about}\n(\n{step.script}\n)\n" for step in steps]
    return "\n".join(["#!/usr/bin/env bash", "# Written by thinkfirst-pod.", f"{STRICT}\n", *parts])


def run(steps: Sequence[job.Step], *, delete: job.Step) -> int:
    """Runs steps until one fails; says what deletes the rest, unless that was done."""
    status = 0
    for step in steps:
        print(f"== {step.name}: {step.about}", flush=True)
        try:
            status = subprocess.run(["bash", "-c", f"{STRICT}\n{step.script}"], check=False).returncode
        except KeyboardInterrupt:
            status = 130
        if status:
            left = [later.name for later in steps[steps.index(step) + 1 :]]
            print(f"{step.name}: exit status {status}; not done: {', '.join(left) or 'nothing'}", file=sys.stderr)
            break
    if status or delete not in steps:
        print(f"what was made is still there, and may cost; this deletes it:\n\n{delete.script}\n", flush=True)
    return status


def _steps(line: flags.FlagValues, rest: list[str]) -> tuple[job.Step, ...]:
    """All steps of the launch; thinkfirst-train's flags are looked at before anything is made."""
    if wrong := [name for name in line.steps if name not in job.STEPS]:
        raise ValueError(f"--steps={wrong[0]}: there is {', '.join(job.STEPS)}")
    told = train.define_flags()
    if more := told(["train", *rest])[1:]:
        raise ValueError(f"unexpected argument {more[0]!r}")
    train.asked_for(told)
    given = tuple(rest) if told.workdir else (*rest, "--workdir=run")
    names = ("name", "wheel", "zone", "project", "accelerator", "topology", "cluster", "hosts", "spot")
    fields = {name: getattr(line, name) for name in names}
    launched = job.Job(**fields, flags=given, workdir=told.workdir or "run", bring=tuple(line.bring))
    return TARGETS[line.target](launched)


def cli() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
