"""Every recipe is run in a cloud of folders: stubs of gcloud, xpk, kubectl and uv that do what they are told here."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from thinkfirst.launch import pod
from thinkfirst.launch.targets import job

WHEEL = "thinkfirst-0.1.0-py3-none-any.whl"
ODD = 'instruction=it\'s $HOME "and" `more`; exit 9'

# All of them are this program.  A worker is a folder, which is its home; what was asked for is noted in calls.jsonl.
CLOUD = """#!{python}
import json, os, pathlib, re, shutil, subprocess, sys
cloud, program, words = pathlib.Path({cloud!r}), pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open(cloud / "calls.jsonl", "a") as calls:
    calls.write(json.dumps([program, *words]) + "\\n")
flag = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
plain = [word for word in words if not word.startswith("--")]
workers = [cloud / "workers" / name for name in ("mine-x3k1", "mine-b7q2")]

def run(worker, command):
    return subprocess.run(["bash", "-c", command], cwd=worker, env=dict(os.environ, HOME=str(worker))).returncode

def copy(source, target):
    shutil.copytree(source, target, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, target)

def scp(sources, target, workers):
    for worker in workers:
        for source in sources:
            here = worker / source.split(":", 1)[1] if ":" in source else pathlib.Path(source)
            there = worker if target.endswith(":") else pathlib.Path(target)
            copy(here, there / here.name if there.is_dir() else there)

status = 0
if program == "uv" and plain[0] == "venv":
    os.makedirs(".venv/bin", exist_ok=True)
    shutil.copy(cloud / "python", ".venv/bin/python")
elif program == "gcloud" and plain[0] == "storage":
    copy(cloud / "bucket", pathlib.Path(plain[-1]))
elif program == "gcloud" and "create" in plain:
    [worker.mkdir(parents=True, exist_ok=True) for worker in workers]
elif program == "gcloud" and "list-instances" in plain:
    print(*(worker.name for worker in workers), sep="\\n")
elif program == "gcloud" and "tpu-vm" in plain:
    chosen = workers if flag.get("worker") == "all" else workers[:1]
    if "ssh" in plain:
        status = max(run(worker, flag["command"]) for worker in chosen)
    elif "scp" in plain:
        scp(plain[4:-1], plain[-1], chosen)
elif program == "gcloud" and "ssh" in plain:
    status = run(cloud / "workers" / plain[2], flag["command"])
elif program == "gcloud" and "scp" in plain:
    (name,) = {{word.split(":")[0] for word in plain[2:] if ":" in word}}
    scp(plain[2:-1], plain[-1], [cloud / "workers" / name])
elif program == "xpk" and plain == ["workload", "create"]:
    shutil.copytree(flag["script-dir"], cloud / "image")
    status = run(cloud / "image", flag["command"])
elif program == "kubectl":
    print("pod/mine-slice-job-0-0-abcde")
sys.exit(status)
"""

# The worker's Python: notes what it is to do, and does as thinkfirst-train would.
PYTHON = """#!{python}
import json, pathlib, sys
with open("asked.jsonl", "a") as asked:
    asked.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "-m":
    workdir = [word.split("=")[1] for word in sys.argv if word.startswith("--workdir=")][-1]
    if "://" not in workdir and "--process=1" not in sys.argv:
        pathlib.Path(workdir).mkdir(exist_ok=True)
        pathlib.Path(workdir, "config.json").write_text("{{}}")
    print("trained", flush=True)
    sys.exit({status})
"""

TARGETS = {
    "tpu_vm": ["--zone=us-west4-a", "--accelerator=v5litepod-16"],
    "compute": ["--zone=us-east5-a", "--project=p", "--accelerator=ct6e-standard-4t", "--topology=2x4"],
    "gke": ["--zone=us-west4-a", "--project=p", "--accelerator=v5litepod-16"],
}


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Makes the stubs; returns where they keep what they were asked."""
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "cloud"
    (made / "bin").mkdir(parents=True)
    (made / "bucket").mkdir()
    (made / "bucket" / "config.json").write_text("{}")
    (tmp_path / WHEEL).touch()
    for name in ("gcloud", "xpk", "kubectl", "uv"):
        write_program(made / "bin" / name, CLOUD.format(python=sys.executable, cloud=str(made)))
    write_program(made / "python", PYTHON.format(python=sys.executable, status=0))
    monkeypatch.setenv("PATH", f"{made / 'bin'}:{os.environ['PATH']}")
    return made


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def calls(cloud):
    return [json.loads(line) for line in (cloud / "calls.jsonl").read_text().splitlines()]


def line(target, *flags, workdir="--workdir=gs://bucket/run"):
    told = ["pod", f"--target={target}", "--name=mine", f"--wheel={WHEEL}", *TARGETS[target], *flags]
    return [*told, "--", "--recipe=demo", "--set", ODD, *([workdir] if workdir else [])]


def asked(folder):
    return [json.loads(row) for row in (folder / "asked.jsonl").read_text().splitlines()]


def shell_of(capsys, arguments):
    assert pod.main([*arguments[:1], "--dry_run", *arguments[1:]]) == 0
    return capsys.readouterr().out


def run_of(workdir="--workdir=gs://bucket/run"):
    return ["-m", "thinkfirst.launch.train", "--recipe=demo", "--set", ODD, workdir]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("flags", [[], ["--nospot"], ["--bring=gs://bucket/gemma 3"]])
def test_every_recipe_is_shell(target, flags, capsys, cloud):
    shell = shell_of(capsys, line(target, *flags))
    assert subprocess.run(["bash", "-n"], input=shell, text=True, check=False).returncode == 0
    assert not (cloud / "calls.jsonl").exists(), "a dry run asks nothing of the cloud"
    assert ("--spot" in shell or "=SPOT" in shell) == ("--nospot" not in flags)
    assert "[tpu,gcs]" in shell and "delete" in shell


@pytest.mark.parametrize("printed", [True, False])
def test_tpu_vm_runs_the_same_command_on_every_worker(printed, capsys, cloud, tmp_path):
    told = line("tpu_vm", "--bring=gs://bucket/gemma 3", workdir="")
    if printed:
        subprocess.run(["bash", "-c", shell_of(capsys, told)], check=True)
    else:
        assert pod.main(told) == 0
    for worker in (cloud / "workers").iterdir():
        brought, ran = asked(worker / job.FOLDER)
        assert brought[0] == "-c" and brought[2:] == ["gs://bucket/gemma 3", "gemma 3"]
        assert ran == run_of("--workdir=run")
    assert (tmp_path / "runs" / "pods" / "mine" / "run" / "config.json").is_file()
    assert (tmp_path / "runs" / "pods" / "mine" / "log.txt").read_text() == "trained\n"
    create, *_, delete = [call for call in calls(cloud) if call[0] == "gcloud"]
    assert create[1:6] == ["compute", "tpus", "tpu-vm", "create", "mine"] and "--spot" in create
    assert {"--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--zone=us-west4-a"} <= set(create)
    assert delete[1:] == ["compute", "tpus", "tpu-vm", "delete", "--quiet", "mine", "--zone=us-west4-a"]
    (install,) = {call[-1] for call in calls(cloud) if call[:2] == ["uv", "pip"]} & {
        f"thinkfirst[tpu,gcs] @ file://{worker / job.FOLDER}/{WHEEL}" for worker in [cloud / "workers" / "mine-x3k1"]
    }
    assert install


def test_compute_tells_every_worker_where_the_first_one_is(cloud, tmp_path):
    assert pod.main(line("compute", workdir="")) == 0
    for process, name in enumerate(["mine-b7q2", "mine-x3k1"]):
        told = ["--coordinator=mine-b7q2:8476", "--num_processes=2", f"--process={process}"]
        assert asked(cloud / "workers" / name / job.FOLDER) == [[*run_of("--workdir=run"), *told]]
        assert (tmp_path / "runs" / "pods" / "mine" / f"log-{name}.txt").read_text() == "trained\n"
    assert (tmp_path / "runs" / "pods" / "mine" / "run" / "config.json").is_file()
    template, policy, group, *rest = calls(cloud)
    assert {"--machine-type=ct6e-standard-4t", "--provisioning-model=SPOT", "--maintenance-policy=TERMINATE"} <= set(
        template
    )
    assert {"--accelerator-topology=2x4", "--type=HIGH_THROUGHPUT", "--region=us-east5"} <= set(policy)
    assert {"--size=2", "--target-size-policy-mode=bulk", "--template=mine"} <= set(group)
    assert "--workload-policy=projects/p/regions/us-east5/resourcePolicies/mine" in group
    assert [call[2] for call in rest if "delete" in call] == [
        "instance-groups",
        "instance-templates",
        "resource-policies",
    ]


def test_processes_of_this_machine_go_through_the_same_steps(monkeypatch, cloud, tmp_path):
    """With a stub for Python; real ones: tests/system/pod_test.py."""
    monkeypatch.setattr(sys, "executable", str(cloud / "python"))
    told = ["pod", "--target=local", "--name=mine", "--accelerator=cpu-8", "--hosts=2", "--", "--recipe=demo"]
    assert pod.main([*told[:1], "--steps=create,copy,install,start,follow,collect", *told[1:], "--set", ODD]) == 0
    kept = tmp_path / "runs" / "pods" / "mine"
    for process in (0, 1):
        check, (*ran, coordinator, number, which) = asked(kept / "hosts" / str(process))
        assert check == ["-c", "import thinkfirst.launch.train"] and ran == run_of("--workdir=run")
        assert coordinator.startswith("--coordinator=localhost:")
        assert (number, which) == ("--num_processes=2", f"--process={process}")
        assert (kept / f"log-{process}.txt").read_text() == "trained\n"
    assert "device_count=4" in (kept / job.FOLDER / "worker.sh").read_text()
    assert (kept / "run" / "config.json").is_file()
    assert pod.main([*told[:1], "--steps=delete", *told[1:]]) == 0 and not (kept / "hosts").exists()


def test_one_machine_of_compute_engine_needs_no_topology_of_its_own(capsys, cloud):
    flags = ["--accelerator=ct6e-standard-8t", "--topology=2x4"]
    shell = shell_of(capsys, line("compute", *flags))
    assert "--size=1" in shell and "policy" not in shell.replace("--maintenance-policy", "")


def test_gke_puts_the_wheel_into_an_image_and_runs_the_same_command(cloud, tmp_path):
    assert pod.main(line("gke")) == 0
    assert asked(cloud / "image") == [run_of()]
    assert (cloud / "image" / WHEEL).is_file()
    assert (tmp_path / "runs" / "pods" / "mine" / "run" / "config.json").is_file()
    xpk = [call[1:] for call in calls(cloud) if call[0] == "xpk"]
    create, workload, wait, *delete = xpk
    assert {"create", "--cluster=mine", "--tpu-type=v5litepod-16", "--num-slices=1", "--spot"} <= set(create)
    assert {"--workload=mine", "--base-docker-image=python:3.12", "--max-restarts=50"} <= set(workload)
    assert "--wait-for-job-completion=mine" in wait
    assert [call[:3] for call in delete] == [["workload", "delete", "--force"], ["cluster", "delete", "--force"]]
    (logs,) = [call for call in calls(cloud) if call[:2] == ["kubectl", "logs"]]
    assert "--selector=jobset.sigs.k8s.io/jobset-name=mine,batch.kubernetes.io/job-completion-index=0" in logs


def test_a_cluster_that_is_there_is_neither_made_nor_deleted(capsys, cloud):
    shell = shell_of(capsys, line("gke", "--cluster=ours"))
    assert "--cluster=ours" in shell and "xpk cluster" not in shell and "xpk workload delete" in shell


@pytest.mark.parametrize("target", ["tpu_vm", "compute"])
def test_a_run_that_fails_ends_the_launch_with_its_status_and_says_what_deletes(target, capfd, cloud):
    write_program(cloud / "python", PYTHON.format(python=sys.executable, status=143))
    assert pod.main(line(target)) == 143
    said = capfd.readouterr()
    assert "trained" in said.out and "follow: exit status 143; not done: collect, delete" in said.err
    assert not [call for call in calls(cloud) if "delete" in call]
    assert "this deletes it:" in said.out and "delete --quiet mine" in said.out
    assert pod.main(line(target, "--steps=collect,delete")) == 0
    assert "this deletes it:" not in capfd.readouterr().out


def test_steps_are_chosen(capsys, cloud):
    shell = shell_of(capsys, line("tpu_vm", "--steps=follow"))
    assert "worker.sh follow" in shell and "create" not in shell and "worker.sh install" not in shell


@pytest.mark.parametrize(
    ("target", "flags", "says"),
    [
        ("tpu_vm", ["--name=Mine"], "--name=Mine: at most 40 of a-z"),
        ("tpu_vm", ["--name=a;b"], "--name=a;b"),
        ("tpu_vm", ["--zone="], "--zone is not set: such as --zone=us-west4-a"),
        ("tpu_vm", ["--accelerator=tpu7x-16"], "the Cloud TPU API has types that begin with v6e-"),
        ("tpu_vm", ["--wheel=nowhere.whl"], "--wheel=nowhere.whl: no such wheel; `make wheel`"),
        ("tpu_vm", ["--steps=fly"], "--steps=fly: there is create, copy"),
        ("compute", ["--project="], "--project is not set"),
        ("compute", ["--accelerator=ct5lp-hightpu-4t"], "v5e and v4 are had by --target=tpu_vm or --target=gke"),
        ("compute", ["--topology=3x3"], "--topology=3x3: no slice such as 4x4 of 4 chips to a ct6e-standard-4t"),
        ("gke", ["--", "--recipe=demo"], "--workdir=run: a worker's disk is gone with it: name a URL"),
        ("tpu_vm", ["--", "--recipe=nope"], "--recipe=nope: there is demo_base"),
        ("tpu_vm", ["--", "--recipe=demo", "--set", "seed=x"], "expected int"),
        ("tpu_vm", ["--", "--recipe=demo", "more"], "unexpected argument 'more'"),
        ("tpu_vm", ["--", "--recipe=demo", "--process=1"], "--process is for thinkfirst-pod to say: leave it out"),
        ("tpu_vm", ["--", "--recipe=demo", "--workdir=s3://b/run"], "only gs:// and file:// are collected from"),
        ("tpu_vm", ["--bring=gs://"], "gs://: not the URL of a folder"),
    ],
)
def test_bad_input_is_told_before_anything_is_made(target, flags, says, capsys, cloud):
    assert pod.main([*line(target)[:-5], *flags, *([] if "--" in flags else ["--", "--recipe=demo"])]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and says in err
    assert not (cloud / "calls.jsonl").exists() and not pathlib.Path("runs").exists()
