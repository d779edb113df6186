"""Two processes that share a mesh draw what one process draws."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
WORKER = pathlib.Path(__file__).with_name("rollout_worker.py")


def start(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def told(process):
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_two_processes_draw_what_one_draws():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    together = [told(process) for process in [start(2, coordinator, 2, i) for i in range(2)]]
    alone = told(start(1))
    assert together[0]["rows"] == together[1]["rows"] == alone["rows"]
    assert [len(row) for row in alone["rows"]].count(24) < len(alone["rows"])  # some have stopped
    assert (together[0]["devices"], alone["devices"]) == (4, 1)
    np.testing.assert_allclose(together[0]["logp"], alone["logp"], rtol=1e-5)
