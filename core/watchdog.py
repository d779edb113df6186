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
    while (silent := time.monotonic() - budget.beaten) < seconds:
        time.sleep(seconds / LOOKS)
    print(f"hung: {silent:.0f} seconds in {budget.where!r}; every thread's stack follows", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.flush()
    os._exit(EXIT_STATUS)
