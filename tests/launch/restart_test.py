"""Real processes that end in given ways, one start after the other."""

import os
import signal
import subprocess
import sys

import pytest

from thinkfirst.launch import restart

# Ends with the status (or by the signal, where it is negative) that the next line of a file says; counts its starts.
ENDS = """
import os, pathlib, sys
plan = pathlib.Path(sys.argv[1])
first, *rest = plan.read_text().split()
plan.write_text(" ".join(rest))
if int(first) < 0:
    os.kill(os.getpid(), -int(first))
sys.exit(int(first))
"""


def supervise(tmp_path, *statuses, fruitless=2, progress=lambda: None):
    """(exit status, seconds waited before each start) of a program that ends so."""
    plan, waits = tmp_path / "plan", []
    plan.write_text(" ".join(map(str, statuses)))
    command = [sys.executable, "-c", ENDS, str(plan)]
    status = restart.supervise(command, fruitless=fruitless, progress=progress, sleep=waits.append)
    assert not plan.read_text(), "it was not started so often"
    return status, waits


@pytest.mark.parametrize("final", [0, 1, 2, 130])
def test_an_end_that_would_come_again_is_final(tmp_path, final):
    assert supervise(tmp_path, final) == (final, [])


def test_a_crash_is_started_again_and_waits_double_while_nothing_is_saved(tmp_path):
    assert supervise(tmp_path, -9, 134, 70, 0, fruitless=9) == (0, [4.0, 8.0, 16.0])


def test_what_was_saved_ends_the_doubling(tmp_path):
    steps = iter(range(100))
    assert supervise(tmp_path, -9, -9, -9, 143, 0, progress=lambda: next(steps)) == (0, [2.0] * 4)


def test_a_crash_loop_ends(tmp_path, capfd):
    assert supervise(tmp_path, -9, -6, fruitless=2) == (134, [4.0])
    assert "exit status 134; 2 starts in a row got no further: not started again" in capfd.readouterr().out


def test_sigterm_ends_both(tmp_path):
    program = """
import sys
from thinkfirst.launch import restart
child = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
sys.exit(restart.supervise(child, fruitless=5, progress=lambda: None))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as watcher:
        assert watcher.stdout.readline() == b"up\n"
        os.kill(watcher.pid, signal.SIGTERM)
        assert watcher.wait(timeout=300) == 143


def test_progress_is_what_is_on_disk(tmp_path):
    empty = restart.saved_in(tmp_path)
    (tmp_path / "checkpoints" / "sft" / "7").mkdir(parents=True)
    (tmp_path / "checkpoints" / "sft" / ".8.part").mkdir()
    saved = restart.saved_in(tmp_path)
    assert saved != empty and len(saved) == 2
    (tmp_path / "progress.json").write_text("{}")
    assert restart.saved_in(tmp_path) != saved
