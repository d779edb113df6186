"""The one script that every worker runs, wherever it stands: installs, starts, is followed.

    bash worker.sh install           an environment of its own with the wheel in it, and what the run reads
    bash worker.sh start FLAGS       `run` in the background, which outlives the connection
    bash worker.sh run FLAGS         thinkfirst-train, with the job's flags and those given here
    bash worker.sh follow            its output from the beginning, until it ends; its exit status
    bash worker.sh wait              until it ends; its exit status

The images of TPU VMs have Python 3.10, which is too old: uv brings a newer one.
"""

import pathlib
import shlex

from thinkfirst.launch.targets import job as job_lib

WITH_WHEEL = """\
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  uv venv --quiet --allow-existing --python 3.12 .venv
  uv pip install --quiet --python .venv/bin/python "thinkfirst[tpu,gcs] @ file://$PWD/{wheel}"
"""

BRING = "import sys; from thinkfirst.core import mirror; mirror.bring(*sys.argv[1:])"

SCRIPT = """\
#!/usr/bin/env bash
# What a worker does: worker.sh install | start FLAGS | run FLAGS | follow | wait.  Written by thinkfirst-pod.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
@environment@todo=$1
shift

ended() {  # the exit status of the run, once it has ended
  while kill -0 "$(cat pid)" 2>/dev/null; do sleep 1; done
  [ -e status ] || { echo "the run on $(hostname) ended without a word" >&2; return 1; }
  return "$(cat status)"
}

case $todo in
install)
@install@  ;;
start)
  rm -f status
  nohup bash worker.sh attend "$@" >log.txt 2>&1 </dev/null &
  echo $! >pid
  ;;
attend)
  status=0
  bash worker.sh run "$@" || status=$?
  echo "$status" >status
  ;;
run)
  exec @python@ -m thinkfirst.launch.train @flags@ "$@"
  ;;
follow)
  tail -n +1 -f log.txt &
  shown=$!
  status=0
  ended || status=$?
  sleep 1
  kill "$shown"
  exit "$status"
  ;;
wait)
  status=0
  ended || status=$?
  echo "$(hostname): exit status $status"
  exit "$status"
  ;;
*)
  echo "worker.sh: $todo is none of install, start, run, follow, wait" >&2
  exit 2
  ;;
esac
"""


def on_a_tpu(job: job_lib.Job) -> str:
    """The script of a worker that has chips, and the wheel beside it."""
    install = WITH_WHEEL.format(wheel=pathlib.Path(job.wheel).name)
    return _script(job, python=".venv/bin/python", install=install)


def on_this_machine(job: job_lib.Job, python: str, devices: int) -> str:
    """The script of a process here: it sees so many devices of the CPU, and runs what `python` has installed."""
    environment = f"export JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count={devices}\n"
    python = shlex.quote(python)
    install = f"  {python} -c 'import thinkfirst.launch.train'\n"
    return _script(job, python=python, install=install, environment=environment)


def _script(job: job_lib.Job, *, python: str, install: str, environment: str = "") -> str:
    for url in job.bring:
        target = pathlib.PurePosixPath(url).name
        install += f"  {python} -c '{BRING}' {shlex.join([url, target])}\n"
    parts = {"environment": environment, "install": install, "python": python, "flags": shlex.join(job.flags)}
    text = SCRIPT
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text
