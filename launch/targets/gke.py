"""TPU slices of Google Kubernetes Engine, by XPK: the wheel and worker.sh go into an image, every worker runs them.

A worker's disk is gone with it, so the workdir has to be a URL.  JAX finds out by itself which workers there are.  What
ends with a status above 126, such as a preemption, XPK starts again, and the run goes on from its URL; for the others
there is thinkfirst-train's --restarts.
"""

from thinkfirst.core import mirror
from thinkfirst.launch.targets import job as job_lib
from thinkfirst.launch.targets import worker

IMAGE = "python:3.12"
RESTARTS = 50
FOLLOW = """\
pods=jobset.sigs.k8s.io/jobset-name={name},batch.kubernetes.io/job-completion-index=0
until kubectl get pods --selector="$pods" --output=name | grep . >/dev/null; do sleep 10; done
kubectl wait pods --selector="$pods" --for=condition=Ready --timeout=60m
kubectl logs --follow --tail=-1 --container=jax-tpu --selector="$pods\""""


def steps(job: job_lib.Job) -> tuple[job_lib.Step, ...]:
    """The job's steps; a cluster that is named is used, and neither made nor deleted."""
    job.need(zone="us-west4-a", project="my-project", accelerator="v5litepod-16")
    job.need_wheel()
    if not mirror.is_url(job.workdir):
        raise ValueError(f"--workdir={job.workdir}: a worker's disk is gone with it: name a URL, as gs://bucket/run")
    cluster = job.cluster or job.name
    place = {"zone": job.zone, "project": job.project}
    folder = f"{job.kept}/{job_lib.FOLDER}"
    create = job_lib.command(
        "xpk cluster create",
        cluster=cluster,
        tpu_type=job.accelerator,
        num_slices="1",
        spot=job.spot,
        on_demand=not job.spot,
        **place,
    )
    start = job_lib.command(
        "xpk workload create",
        workload=job.name,
        cluster=cluster,
        tpu_type=job.accelerator,
        num_slices="1",
        base_docker_image=IMAGE,
        script_dir=folder,
        max_restarts=str(RESTARTS),
        command="bash worker.sh install && exec bash worker.sh run",
        **place,
    )
    done = job_lib.command("xpk workload list", cluster=cluster, wait_for_job_completion=job.name, **place)
    delete = job_lib.command("xpk workload delete", "--force", workload=job.name, cluster=cluster, **place)
    whole = job_lib.command("xpk cluster delete", "--force", cluster=cluster, **place)
    send = job_lib.written(job, folder, worker.on_a_tpu(job))
    scripts = {
        "create": ("the cluster, with one slice" + (" of spot VMs" if job.spot else ""), create),
        "copy": ("the wheel and worker.sh to where XPK takes them from", send),
        "start": ("every worker installs thinkfirst[tpu] and runs the same command", start),
        "follow": ("the first worker's output; then how the workload ended", f"{FOLLOW.format(name=job.name)}\n{done}"),
        "collect": (f"the workdir into {job.kept}", job_lib.from_url(job)),
        "delete": ("the workload" + ("" if job.cluster else ", and the cluster"), delete),
    }
    if job.cluster:
        del scripts["create"]
    else:
        both = f'status=0\n{delete} || status=$?\n{whole} || status=$?\n[ "$status" -eq 0 ]'
        scripts["delete"] = (scripts["delete"][0], both)
    return tuple(job_lib.Step(name, *scripts[name]) for name in job_lib.STEPS if name in scripts)
