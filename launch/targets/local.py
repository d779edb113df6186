"""Processes of this machine for workers, each with a folder and some devices of the CPU: to try a launch."""

import re
import shlex
import sys

from thinkfirst.core import mirror
from thinkfirst.launch.targets import job as job_lib
from thinkfirst.launch.targets import worker

FREE_PORT = "import socket; s = socket.socket(); s.bind(('localhost', 0)); print(s.getsockname()[1])"


def steps(job: job_lib.Job) -> tuple[job_lib.Step, ...]:
    """The job's steps: those of a pod, with `cp` for scp and `bash` for ssh."""
    devices = re.fullmatch(r"cpu-([1-9]\d*)", job.accelerator or f"cpu-{job.hosts}")
    if not devices or job.hosts < 1 or int(devices[1]) % job.hosts:
        raise ValueError(
            f"--accelerator={job.accelerator} --hosts={job.hosts}: the devices of all hosts together, such as cpu-8"
        )
    script = worker.on_this_machine(job, sys.executable, int(devices[1]) // job.hosts)
    folder, hosts = f"{job.kept}/{job_lib.FOLDER}", f"{job.kept}/hosts"
    every = f"for host in $(seq 0 {job.hosts - 1}); do"
    port = f"port=$({shlex.join([sys.executable, '-c', FREE_PORT])})"
    told = f'--coordinator="localhost:$port" --num_processes={job.hosts} --process="$host"'
    if mirror.is_url(job.workdir):
        collect = job_lib.from_url(job)
    else:
        workdir = shlex.quote(job.workdir if job.workdir.startswith("/") else f"{hosts}/0/{job.workdir}")
        collect = f"rm -rf {job.kept}/run\ncp -R {workdir} {job.kept}/run"
    logs = f'{every} cp {hosts}/"$host"/log.txt {job.kept}/log-"$host".txt; done'
    ended = f'{every} bash {hosts}/"$host"/worker.sh wait; done'
    copied = f'{every} cp {folder}/worker.sh {hosts}/"$host"/; done'
    scripts = {
        "create": (f"a folder for each of {job.hosts} processes", f'{every} mkdir -p {hosts}/"$host"; done'),
        "copy": ("worker.sh to every worker", f"{job_lib.written(job, folder, script, wheel=False)}\n{copied}"),
        "install": ("nothing: what is installed here is used", f'{every} bash {hosts}/"$host"/worker.sh install; done'),
        "start": (
            "the same command in every process, told where the first one listens and its own number",
            f'{port}\n{every} bash {hosts}/"$host"/worker.sh start {told}; done',
        ),
        "follow": ("the first one's output; then all exit statuses", f"bash {hosts}/0/worker.sh follow\n{ended}"),
        "collect": (f"the workdir into {job.kept}", f"{logs}\n{collect}"),
        "delete": ("the folders", f"rm -rf {hosts}"),
    }
    return tuple(job_lib.Step(name, *scripts[name]) for name in job_lib.STEPS)
