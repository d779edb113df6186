"""TPU VMs as Compute Engine instances: a managed instance group whose members are the workers of one slice.

An instance template says what a worker is, a workload policy how the chips of all of them are joined, and the group is
made whole or not at all (bulk).  v5p, v6e and TPU7x can be had so.  The members' names end at random, and no number of
theirs is sure to be found by JAX, so every worker is told where the first one is and which one it is itself.
"""

import re
import shlex

from thinkfirst.core import mirror
from thinkfirst.launch.targets import job as job_lib
from thinkfirst.launch.targets import worker

MACHINE = re.compile(r"(ct5p|ct6e|tpu7x)-[a-z]+-(\d+)t")
IMAGES = {
    "ct5p": "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e",
    "ct6e": "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e",
    "tpu7x": "ubuntu-accel-2404-amd64-tpu-tpu7x",
}
PORT = 8476  # of the first worker, where the others find it
WORKER = f"bash {job_lib.FOLDER}/worker.sh"

# What the steps are made of; a worker that has just begun takes no connections yet.
REACH = """\
for worker in "$@"; do
  for attempt in $(seq 30); do
    if on "$worker" true; then break; fi
    sleep 10
  done
  gcloud compute scp --quiet --recurse {folder} "$worker": {place}
done"""
ALL_AT_ONCE = """\
pids=()
for worker in "$@"; do
  on "$worker" '{todo}' &
  pids+=("$!")
done
for pid in "${{pids[@]}}"; do wait "$pid"; done"""
START = """\
process=0
for worker in "$@"; do
  on "$worker" "{todo} start --coordinator=$1:{port} --num_processes=$# --process=$process"
  process=$((process + 1))
done"""
COLLECT_LOGS = """\
for worker in "$@"; do
  gcloud compute scp --quiet "$worker:{folder}/log.txt" "{kept}/log-$worker.txt" {place}
done"""
# JAX may number the workers in another order: whoever has the run's config.json is the one that wrote it.
COLLECT_RUN = """\
for worker in "$@"; do
  if on "$worker" {test}; then
    gcloud compute scp --quiet --recurse "$worker":{workdir} {kept}/ {place}
  fi
done"""


def steps(job: job_lib.Job) -> tuple[job_lib.Step, ...]:
    """The job's steps."""
    job.need(zone="us-east5-a", project="my-project", accelerator="ct6e-standard-4t", topology="4x4")
    job.need_wheel()
    hosts, workers = _hosts(job), _workers(job)
    folder, place = f"{job.kept}/{job_lib.FOLDER}", _place(job)
    send = job_lib.written(job, folder, worker.on_a_tpu(job))
    install, wait = (ALL_AT_ONCE.format(todo=f"{WORKER} {todo}") for todo in ("install", "wait"))
    follow = f"on \"$1\" '{WORKER} follow'"
    scripts = {
        "create": (f"a slice of {hosts} workers" + (", spot VMs" if job.spot else ""), _create(job, hosts)),
        "copy": (
            "the wheel and worker.sh to every worker",
            f"{send}\n{workers}\n{REACH.format(folder=folder, place=place)}",
        ),
        "install": ("thinkfirst[tpu] on every worker", f"{workers}\n{install}"),
        "start": (
            "the same command on every worker, told the first one's name and its own number",
            f"{workers}\n{START.format(todo=WORKER, port=PORT)}",
        ),
        "follow": ("the first worker's output; then all exit statuses", f"{workers}\n{follow}\n{wait}"),
        "collect": (f"the workdir into {job.kept}", f"mkdir -p {job.kept}\n{workers}\n{_collect(job, place)}"),
        "delete": ("the slice and what it was made of", _delete(job, hosts)),
    }
    return tuple(job_lib.Step(name, *scripts[name]) for name in job_lib.STEPS)


def _hosts(job: job_lib.Job) -> int:
    """Workers of the slice: the topology's chips, so many to a machine."""
    machine = MACHINE.fullmatch(job.accelerator)
    if not machine:
        raise ValueError(
            f"--accelerator={job.accelerator}: no machine type of ct5p, ct6e or tpu7x, such as ct6e-standard-4t; "
            "v5e and v4 are had by --target=tpu_vm or --target=gke"
        )
    if not re.fullmatch(r"\d+x\d+(x\d+)?", job.topology) or job.num_chips % int(machine[2]):
        raise ValueError(
            f"--topology={job.topology}: no slice such as 4x4 of {machine[2]} chips to a {job.accelerator}"
        )
    return job.num_chips // int(machine[2])


def _place(job: job_lib.Job) -> str:
    return f"--zone={shlex.quote(job.zone)} --project={shlex.quote(job.project)}"


def _workers(job: job_lib.Job) -> str:
    """Shell that makes the workers' names $1, $2 ..., and `on NAME COMMAND` what runs a command there."""
    listed = job_lib.command(
        "gcloud compute instance-groups managed list-instances",
        job.name,
        format="value(instance.basename())",
        zone=job.zone,
        project=job.project,
    )
    on = f'on() {{ gcloud compute ssh --quiet "$1" --command="$2" {_place(job)}; }}'
    return f'{on}\nworkers=$({listed})\nset -- $(printf "%s\\n" $workers | sort)\n[ "$#" -gt 0 ]'


def _create(job: job_lib.Job, hosts: int) -> str:
    kind = job.accelerator.split("-")[0]
    spot = {"provisioning_model": "SPOT", "instance_termination_action": "STOP"}
    template = job_lib.command(
        "gcloud compute instance-templates create",
        job.name,
        machine_type=job.accelerator,
        **(spot if job.spot else {"provisioning_model": "STANDARD"}),
        maintenance_policy="TERMINATE",
        image_project="ubuntu-os-accelerator-images",
        image_family=IMAGES[kind],
        boot_disk_size="200GB",
        boot_disk_type="hyperdisk-balanced" if kind == "tpu7x" else "",
        scopes="cloud-platform",
        project=job.project,
    )
    policy = job_lib.command(
        "gcloud compute resource-policies create workload-policy",
        job.name,
        type="HIGH_THROUGHPUT",
        accelerator_topology=job.topology,
        accelerator_topology_mode="AUTO_CONNECT",
        region=job.region,
        project=job.project,
    )
    several = hosts > 1
    group = job_lib.command(
        "gcloud compute instance-groups managed create",
        job.name,
        template=job.name,
        size=str(hosts),
        target_size_policy_mode="bulk" if several else "",
        default_action_on_vm_failure="do-nothing",
        workload_policy=f"projects/{job.project}/regions/{job.region}/resourcePolicies/{job.name}" if several else "",
        zone=job.zone,
        project=job.project,
    )
    stable = job_lib.command(
        "gcloud compute instance-groups managed wait-until",
        job.name,
        "--stable",
        zone=job.zone,
        project=job.project,
    )
    return "\n".join([template, *([policy] if several else []), group, stable])


def _collect(job: job_lib.Job, place: str) -> str:
    logs = COLLECT_LOGS.format(folder=job_lib.FOLDER, kept=job.kept, place=place)
    if mirror.is_url(job.workdir):
        return f"{logs}\n{job_lib.from_url(job)}"
    workdir = job.workdir if job.workdir.startswith("/") else f"{job_lib.FOLDER}/{job.workdir}"
    test = shlex.quote(f"test -e {shlex.quote(workdir + '/config.json')}")
    run = COLLECT_RUN.format(test=test, workdir=shlex.quote(workdir), kept=job.kept, place=place)
    return f"{logs}\n{run}"


def _delete(job: job_lib.Job, hosts: int) -> str:
    """Every part, also where one of them is gone already."""
    words = ["instance-groups managed", "instance-templates"]
    places = [{"zone": job.zone}, {}]
    if hosts > 1:
        words, places = [*words, "resource-policies"], [*places, {"region": job.region}]
    lines = ["status=0"]
    for kind, where in zip(words, places, strict=True):
        whole = job_lib.command(f"gcloud compute {kind} delete --quiet", job.name, **where, project=job.project)
        lines.append(f"{whole} || status=$?")
    return "\n".join([*lines, '[ "$status" -eq 0 ]'])
