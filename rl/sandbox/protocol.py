"""What is asked of the sandbox and what it answers.

A `Job` only yields values: whoever asked holds the expected ones and compares.  A `Check` runs trusted tests in a
process beside the program's; the functions the tests call are asked of the program through a socket, as plain values.
Neither ever runs a comparison where the program could reach it.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Job:
    """A program, what to run after it (in its process), and the expressions whose values are asked for."""

    code: str
    calls: tuple[str, ...]
    setup: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Check:
    """A program and trusted tests: sources that raise or not.  They run in a process of their own.

    `names` are the program's functions that the tests call, `modules` what they use of the standard library.
    Arguments and results are plain values (values.py): what a function does to its arguments is not seen.
    """

    code: str
    tests: tuple[str, ...]
    names: tuple[str, ...]
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Failed:
    """In place of a value: the name of the exception, or why there was no answer (an outcome's status)."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`values` has one entry for each call or test: a plain value (True for a test that passed) or `Failed`.

    status: "done" (every one was answered), "deadline", "cpu", "output" (more than its share), "crashed" (its process
    ended early), or "lost" (two workers in a row broke down over it: nothing is known about the program).
    """

    status: str
    values: tuple[Any, ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one job may use.  The wall is for what sleeps or waits: honest code on a crowded machine needs it wide."""

    wall_seconds: float = 30.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 << 20
    output_bytes: int = 1 << 16

    def __post_init__(self) -> None:
        if self.wall_seconds <= 0 or self.cpu_seconds < 1 or self.memory_bytes < 64 << 20 or self.output_bytes < 1:
            raise ValueError(f"sandbox: limits must be positive, and the memory at least 64 MiB: {self}")
