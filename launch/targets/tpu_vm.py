"""TPU VMs by the Cloud TPU API: `gcloud compute tpus tpu-vm`, with `--worker=all` for what every worker does.

Google develops this API no further, and it makes no TPU7x; v4 and v5e can be had by it, which Compute Engine has not.
JAX finds out by itself which workers there are.
"""

from thinkfirst.core import mirror
from thinkfirst.launch.targets import job as job_lib
from thinkfirst.launch.targets import worker

# The software of the machine, by how the accelerator type begins.
VERSIONS = {
    "v6e-": "v2-alpha-tpuv6e",
    "v5p-": "v2-alpha-tpuv5",
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v4-": "tpu-ubuntu2204-base",
    "v3-": "tpu-ubuntu2204-base",
    "v2-": "tpu-ubuntu2204-base",
}


def steps(job: job_lib.Job) -> tuple[job_lib.Step, ...]:
    """The job's steps."""
    job.need(zone="us-west4-a", accelerator="v5litepod-16")
    job.need_wheel()
    versions = [version for start, version in VERSIONS.items() if job.accelerator.startswith(start)]
    if not versions:
        known = ", ".join(VERSIONS)
        raise ValueError(f"--accelerator={job.accelerator}: the Cloud TPU API has types that begin with {known}")
    place = {"zone": job.zone, "project": job.project}
    tpu_vm = "gcloud compute tpus tpu-vm"
    folder = f"{job.kept}/{job_lib.FOLDER}"

    def on(workers: str, todo: str) -> str:
        line = f"bash {job_lib.FOLDER}/worker.sh {todo}"
        return job_lib.command(f"{tpu_vm} ssh --quiet", job.name, worker=workers, command=line, **place)

    def copied(sources: str, target: str, workers: str) -> str:
        return job_lib.command(f"{tpu_vm} scp --quiet --recurse", sources, target, worker=workers, **place)

    create = job_lib.command(
        f"{tpu_vm} create", job.name, accelerator_type=job.accelerator, version=versions[0], spot=job.spot, **place
    )
    if mirror.is_url(job.workdir):
        collect = job_lib.from_url(job)
    else:
        workdir = job.workdir if job.workdir.startswith("/") else f"{job_lib.FOLDER}/{job.workdir}"
        collect = copied(f"{job.name}:{workdir}", f"{job.kept}/", "0")
    logs = copied(f"{job.name}:{job_lib.FOLDER}/log.txt", f"{job.kept}/", "0")
    scripts = {
        "create": ("the slice" + (", of spot VMs" if job.spot else ""), create),
        "copy": (
            "the wheel and worker.sh to every worker",
            job_lib.written(job, folder, worker.on_a_tpu(job)) + "\n" + copied(folder, f"{job.name}:", "all"),
        ),
        "install": ("thinkfirst[tpu] on every worker", on("all", "install")),
        "start": ("the same command on every worker", on("all", "start")),
        "follow": ("worker 0's output; then every worker's exit status", on("0", "follow") + "\n" + on("all", "wait")),
        "collect": (f"the workdir into {job.kept}", f"mkdir -p {job.kept}\n{logs}\n{collect}"),
        "delete": ("the slice", job_lib.command(f"{tpu_vm} delete --quiet", job.name, **place)),
    }
    return tuple(job_lib.Step(name, *scripts[name]) for name in job_lib.STEPS)
