"""Ends a process that has stopped getting on: on a pod it would hold every other host in a collective for ever."""

import faulthandler
import os
import sys
import threading
import time

from thinkfirst.core import runtime

EXIT_STATUS = 70  # of a process that hung: whoever restarts it may do so
LOOKS = 20  # a deadline


def start(budget: runtime.Budget, seconds: float) -> threading.Thread | None:
    """Watches what `budget` was last told; after `seconds` of silence it prints every stack and ends the process.

    0 watches nothing.  A step's first call compiles: the deadline has to be longer than that.
    """
    if seconds < 0:
        raise ValueError(f"--hang_seconds={seconds} must not be negative")
    if not seconds:
        return None
    thread = threading.Thread(target=_watch, args=(budget, seconds), name="watchdog", daemon=True)
    thread.start()
    return thread


def _watch(budget: runtime.Budget, seconds: float) -> None:
    """Counts its own looks, not the clock: a machine that sleeps, or a process that is stopped, is no hang."""
    last, looks = budget.beaten, 0
    while looks < LOOKS:
        time.sleep(seconds / LOOKS)
        looks = looks + 1 if budget.beaten == last else 0
        last = budget.beaten
    print(f"hung: {seconds:g} seconds in {budget.where!r}; every thread's stack follows", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.flush()
    os._exit(EXIT_STATUS)
