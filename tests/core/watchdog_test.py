"""A process that hangs ends itself, and says where."""

import os
import signal
import subprocess
import sys
import time

import pytest

from thinkfirst.core import runtime, watchdog

HANGS = """
import time
from thinkfirst.core import runtime, watchdog
budget = runtime.Budget()
watchdog.start(budget, 1.0)
for _ in range(8):
    time.sleep(0.2)
    budget.check("getting on")
def stuck():
    budget.beat("rewards of step 7")
    time.sleep(600)
stuck()
"""


def test_the_phase_and_every_stack_are_told_before_it_ends():
    found = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == watchdog.EXIT_STATUS
    assert "seconds in 'rewards of step 7'; every thread's stack follows" in found.stderr
    assert 'File "<string>", line 11 in stuck' in found.stderr and "_watch" in found.stderr


STANDS = """
import time
from thinkfirst.core import runtime, watchdog
budget = runtime.Budget()
watchdog.start(budget, 4.0)
print("up", flush=True)
time.sleep(2)
budget.beat("x")
time.sleep(1)
"""


@pytest.mark.slow
def test_a_process_that_was_stopped_has_not_hung():
    """More than its deadline by the clock, and next to nothing by its own looks."""
    with subprocess.Popen([sys.executable, "-c", STANDS], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(6)
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(timeout=300) == 0


def test_no_deadline_watches_nothing_and_a_negative_one_is_refused():
    assert watchdog.start(runtime.Budget(), 0.0) is None
    with pytest.raises(ValueError, match="--hang_seconds=-1"):
        watchdog.start(runtime.Budget(), -1.0)


def test_it_goes_by_the_last_beat():
    budget = runtime.Budget()
    before = budget.beaten
    time.sleep(0.01)
    budget.check("x")
    assert budget.where == "x" and budget.beaten > before
