"""Two processes of four devices are one process of eight: the real program, started on each "host".

A pod's hosts find each other by themselves; here --coordinator says where process 0 is.  A shared machine may stand
still for a while: hosts that are to get on wait long for each other, and only one that is killed is missed soon.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
WORKER = pathlib.Path(__file__).with_name("hosts_worker.py")
CLOCKS = re.compile(r"step_time|tokens_per_second|rollout/tokens_per_second|rollout/compiles|(rollout/)?time/.*")


def start(devices, fault, workdir, *flags):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, str(WORKER), str(devices), fault, f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def two(workdir, fault="none", *, heartbeat=7200):
    """(exit statuses, what was said) of both hosts."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = [f"--coordinator=localhost:{free.getsockname()[1]}", "--num_processes=2"]
    shared.append(f"--heartbeat_seconds={heartbeat}")
    processes = [start(4, fault, workdir, *shared, f"--process={process}") for process in (0, 1)]
    said = [process.communicate(timeout=1500)[0] for process in processes]
    return [process.returncode for process in processes], said


def rows(workdir, name="metrics.jsonl"):
    found = map(json.loads, (workdir / name).read_text().splitlines())
    return [{key: value for key, value in row.items() if not CLOCKS.fullmatch(key)} for row in found]


def compare(mine, theirs, *, within=1e-6):
    """The same tokens and rewards; losses almost."""
    pairs = list(zip(rows(mine, "completions.jsonl"), rows(theirs, "completions.jsonl"), strict=True))
    assert [row["completion"] for row, _ in pairs] == [row["completion"] for _, row in pairs]
    assert [row["parts"] for row, _ in pairs] == [row["parts"] for _, row in pairs]
    for row, other in zip(rows(mine), rows(theirs), strict=True):
        assert row.keys() == other.keys()
        assert row.get("reward") == other.get("reward")
        np.testing.assert_allclose(row["loss"], other["loss"], rtol=within, atol=within)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """One process of eight devices, uninterrupted."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    process = start(8, "none", workdir)
    said = process.communicate(timeout=1500)[0]
    assert process.returncode == 0, said
    return workdir


def test_sigterm_to_one_host_stops_both_at_one_step_and_the_rest_equals_one_process(straight, tmp_path):
    statuses, said = two(tmp_path / "run", "SIGTERM:1")
    assert statuses == [143, 143], said
    assert "told to end; the same command goes on from here" in said[0]
    steps = [path.name for path in (tmp_path / "run" / "checkpoints" / "grpo").iterdir() if path.name.isdigit()]
    assert len(steps) == 1 and int(steps[0]) == len(rows(tmp_path / "run")) - 2
    statuses, said = two(tmp_path / "run")
    assert statuses == [0, 0], said
    assert f"grpo: resumes from step {2 + int(steps[0])}" in said[0] and "resumes" not in said[1]
    compare(tmp_path / "run", straight)


def test_a_run_goes_on_on_another_mesh(straight, tmp_path):
    """Three of its five steps on data 8, one on data 2 x fsdp 4, the last on one device."""
    for devices, *flags in (
        (8, "--max_steps=3"),
        (8, "--max_steps=1", "--set=mesh.data=2", "--set=mesh.fsdp=4"),
        (1, "--set=mesh.data=1"),
    ):
        process = start(devices, "none", tmp_path / "run", *flags)
        said = process.communicate(timeout=1500)[0]
        assert process.returncode == 0, said
    assert "goes on with another mesh.fsdp: 4 -> 1" in said and "resumes from step 4" in said
    compare(tmp_path / "run", straight, within=1e-5)


def test_a_host_that_is_killed_ends_the_other_within_the_heartbeat(tmp_path):
    statuses, said = two(tmp_path / "run", "SIGKILL:1", heartbeat=20)
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] not in (0, 1, 2, 143), said[0]  # what a restart is for
    assert (tmp_path / "run" / "checkpoints" / "sft" / "2" / "MANIFEST.json").is_file()


def test_rewards_that_fail_on_one_host_end_both_with_a_reason(tmp_path):
    statuses, said = two(tmp_path / "run", "reward:1")
    assert statuses == [2, 2], said
    assert "error: this judge is out of order" in said[1]
    assert "error: the rewards of step 2 failed on host 1" in said[0]
