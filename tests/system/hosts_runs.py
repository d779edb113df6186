"""The real program on one or two "hosts", and what their runs came to.

A pod's hosts find each other by themselves; here --coordinator says where process 0 is.  A shared machine may stand
still for a while: hosts that are to get on wait long for each other, and only one that is killed is missed soon.
"""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np

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


def alone(workdir):
    """One process of eight devices, uninterrupted."""
    process = start(8, "none", workdir)
    said = process.communicate(timeout=1500)[0]
    assert process.returncode == 0, said
    return workdir
