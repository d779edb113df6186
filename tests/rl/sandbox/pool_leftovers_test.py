"""Nothing is left of a job: no process, no file, no descriptor, here or in a worker; nor of a sandbox."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

import attacks
from thinkfirst.rl.sandbox import pool, protocol

SLEEPER = """
import os, sys, threading, time
from thinkfirst.rl.sandbox import pool, protocol
with pool.Sandbox(1, layers=sys.argv[1].split(",")) as box:
    threading.Thread(target=box.run, args=([protocol.Job("", ("__import__('time').sleep(1000)",))],)).start()
    time.sleep(1)
    print("running", *attacks.processes_below(os.getpid()), flush=True)
    time.sleep(1000)
"""
LAYERS = [pool.LAYERS, pool.LAYERS[:3]]


def descriptors(pids):
    return {pid: sorted(os.listdir(f"/proc/{pid}/fd")) for pid in pids}


@pytest.mark.long
@pytest.mark.parametrize("layers", LAYERS, ids=["best", "no namespaces"])
def test_a_thousand_jobs_leave_nothing_behind(layers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = pathlib.Path(pool.__file__).parent
    files = sorted(os.listdir(package))
    honest = protocol.Job("def f(x): return x + 1", ("f(1)",))
    programs = [code for name, code in attacks.QUICK.items() if "floods" not in name]
    mixed = [protocol.Job(code, ("f(1)",)) for code in programs]
    pairs = [protocol.Check(text, ("assert f(1) == 2",), ("f",)) for text in (honest.code, "import os\nos._exit(0)")]
    outside = attacks.processes_below(os.getpid())
    opened = descriptors([os.getpid()])
    with pool.Sandbox(2, layers=layers) as box:
        box.run([honest] * 4)
        before = attacks.processes_below(os.getpid())
        known = descriptors(before)
        outcomes = box.run(mixed + (pairs + [honest] * 8) * 100)
        assert len(outcomes) >= 1000
        assert all(outcome.values == (2,) for outcome in outcomes[len(mixed) + 2 :: 10])
        assert attacks.processes_below(os.getpid()) == before
        assert descriptors(before) == known
    assert attacks.processes_below(os.getpid()) == outside
    assert descriptors([os.getpid()]) == opened
    assert os.listdir(tmp_path) == []
    assert sorted(os.listdir(package)) == files


@pytest.mark.parametrize("layers", LAYERS, ids=["best", "no namespaces"])
def test_workers_and_jobs_end_with_the_process_that_started_them(layers):
    tests = pathlib.Path(attacks.__file__).parent
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(tests)!r}); import attacks{SLEEPER}"]
    with subprocess.Popen([*command, ",".join(layers)], stdout=subprocess.PIPE, text=True) as owner:
        words = []
        while not words or words[0] != "running":
            words = owner.stdout.readline().split()
        pids = {int(word) for word in words[1:]}
        assert len(pids) >= 3  # itself, a worker, a job
        owner.kill()
    while any(alive(pid) for pid in pids):  # the time limit of the test says if they never end
        time.sleep(0.05)


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_closing_does_not_wait_for_what_runs():
    before = attacks.processes_below(os.getpid())
    outcomes = []
    job = protocol.Job("", ("__import__('time').sleep(1000)",))
    with pool.Sandbox(1, limits=protocol.Limits(wall_seconds=1000.0)) as box:
        idle = attacks.processes_below(os.getpid())
        asking = threading.Thread(target=lambda: outcomes.extend(box.run([job])))
        asking.start()
        while attacks.processes_below(os.getpid()) == idle:
            time.sleep(0.05)
    asking.join()
    assert [outcome.status for outcome in outcomes] == ["lost"]
    assert attacks.processes_below(os.getpid()) == before
