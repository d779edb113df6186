"""Rewards of the user's own: a Python function, run in a process that can be killed.

    def brevity(completions, problems, *, step, phase):
        return [1 - len(completion.text) / 4000 for completion in completions]

It is named `module:function`, or `0.1*module:function` with its weight, and called once a step with all completions
(`batch.Completion`) and the problem of each (`batch.Problem`); where a step refills its groups, once for each round of
it.  It gives a number for each, or None where it has nothing to say.  A judge that asks a language model is such a
function; it may open connections and start threads.

What happens when it fails:

    no such module or function, wrong signature       the run does not start
    an exception, NaN, infinity, text, a wrong length,   the run stops, with the function, the value and the row named;
    or the death of its process                          the same command goes on once the function is mended
    no answer within the deadline                        its process is killed, a new one is started at the next call,
                                                         and all rewards of this call are unknown: nothing is learned
                                                         from them.  After three such calls in a row the run stops.

The function runs in an interpreter of its own, started afresh (nothing is forked from the process that holds the
accelerator) and kept from step to step; JAX, if it imports it, sees only the CPU there.
"""

import contextlib
import dataclasses
import json
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence

from thinkfirst.rl import batch

START_SECONDS = 120.0
EXIT_SECONDS = 5.0
MAX_TIMEOUTS = 3


class Failed(ValueError):
    """A reward of the user's own that cannot be used; the message names it."""


@dataclasses.dataclass(frozen=True)
class Named:
    """A function and what its score is worth."""

    function: str
    weight: float

    @property
    def name(self) -> str:
        """What the score is called in the log."""
        return self.function.rpartition(":")[2]


def named(text: str) -> Named:
    """The function and weight that `module:function` or `0.1*module:function` says."""
    weight, star, function = text.rpartition("*")
    try:
        value = float(weight) if star else 1.0
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Failed(f"reward {text!r}: {weight!r} before the * is no number")
    return Named(function.strip(), value)


class UserReward:
    """A function in a process of its own, started at once: a bad name is found before the first step."""

    def __init__(self, function: str, *, seconds: float) -> None:
        if not seconds > 0:
            raise Failed(f"reward {function!r}: its deadline must be positive, not {seconds} seconds")
        self._function, self._seconds = function, seconds
        self._timeouts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def __call__(
        self, completions: Sequence[batch.Completion], problems: Sequence[batch.Problem], *, step: int, phase: str
    ) -> list[float | None] | None:
        """The score of each completion; None when there was none within the deadline."""
        if self._process is None:
            self._start()
        message = pickle.dumps((list(completions), list(problems), step, phase))
        try:
            found = self._ask(len(message).to_bytes(8, "big") + message, self._seconds)
        except TimeoutError:
            self._timeouts += 1
            if self._timeouts >= MAX_TIMEOUTS:
                late = f"no answer within {self._seconds:g} seconds, {MAX_TIMEOUTS} calls in a row"
                raise Failed(f"reward {self._function!r}: {late}") from None
            return None
        self._timeouts = 0
        assert len(found) == len(completions)
        return found

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            _kill(self._process)
            self._process = None

    def _start(self) -> None:
        program = f"from thinkfirst.rl.rewards import user_worker as w; raise SystemExit(w.serve({self._function!r}))"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        weakref.finalize(self, _kill, process)
        self._process = process
        try:
            self._ask(b"", START_SECONDS)
        except TimeoutError as error:
            raise Failed(f"reward {self._function!r}: not imported within {START_SECONDS:g} seconds") from error

    def _ask(self, message: bytes, seconds: float) -> list[float | None]:
        """What the process answers to a message; it is gone after any failure."""
        assert self._process is not None
        assert self._process.stdin is not None and self._process.stdout is not None
        end = time.monotonic() + seconds
        try:
            line = _exchange(self._process.stdin.fileno(), self._process.stdout.fileno(), message, end)
        except TimeoutError:
            self.close()
            raise
        if line is None:
            process = self._process
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(EXIT_SECONDS)
            self.close()
            how = f"its process ended without an answer, exit status {process.returncode}"
            raise Failed(f"reward {self._function!r}: {how}")
        answer = json.loads(line)
        if "error" in answer:
            self.close()
            raise Failed(f"reward {self._function!r}: {answer['error']}")
        return answer["values"]


def _exchange(into: int, out_of: int, message: bytes, end: float) -> bytes | None:
    """The line that answers `message`; None when there will be none, TimeoutError when it is not there by `end`."""
    os.set_blocking(into, False)
    left, found = memoryview(message), b""
    while not found.endswith(b"\n"):
        remaining = end - time.monotonic()
        readable, writable, _ = select.select([out_of], [into] if left else [], [], max(0.0, remaining))
        if not readable and not writable:
            raise TimeoutError
        try:
            if writable:
                left = left[os.write(into, left[: 1 << 16]) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:
            left = left[:0]
        if readable:
            piece = os.read(out_of, 1 << 16)
            if not piece:
                return None
            found += piece
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process with all that it started, once, and waits for it."""
    assert process.stdin is not None and process.stdout is not None
    if process.stdin.closed:
        return
    # It leads a session of its own, so its group is its own too.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
