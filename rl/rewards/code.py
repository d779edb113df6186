"""What share of its hidden tests a program passes.

A program yields values and never a verdict: expected values and comparisons stay out of its process (hidden_tests.py,
sandbox/pool.py).  So it scores by returning what is right, and by nothing else it does.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import hidden_tests
from thinkfirst.rl.sandbox import pool, protocol

_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`passed` of `total` tests, and the status of the sandbox (see `protocol.Outcome`)."""

    passed: int
    total: int
    status: str

    @property
    def fraction(self) -> float | None:
        """The share of tests passed; None where the sandbox lost the program, so nothing is known about it."""
        return None if self.status == "lost" else self.passed / self.total

    @property
    def all_passed(self) -> bool:
        return self.status != "lost" and self.passed == self.total


Submission = tuple[str, tuple[str, ...]]  # a program and its hidden tests


class Judge:
    """What `think_first.Judges` asks of a program: the share of its hidden tests that pass.

    Programs that are handed in together run side by side, equal ones once; one that was not runs when it is asked for.
    """

    def __init__(self, box: pool.Sandbox) -> None:
        self._box = box
        self._known: dict[Submission, Verdict] = {}

    def hand_in(self, submissions: Iterable[Submission]) -> None:
        """Runs the programs of a batch, and forgets those of the batch before."""
        asked = list(dict.fromkeys(submissions))
        self._known = dict(zip(asked, judge(self._box, asked), strict=True))

    def __call__(self, written: str, problem: batch.Problem) -> float | None:
        submission = (written, problem.tests)
        verdict = self._known.get(submission) or judge(self._box, [submission])[0]
        return verdict.fraction


def program(text: str) -> str:
    """The last complete fenced block of a text, else the text as it is."""
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text


def judge(box: pool.Sandbox, submissions: Sequence[Submission]) -> list[Verdict]:
    """A verdict for each (program, hidden tests), in order; they run side by side."""
    parsed = [hidden_tests.parse(tests) for _, tests in submissions]
    jobs: list[protocol.Job | protocol.Check] = []
    owners: list[int] = []
    for index, ((code, _), tests) in enumerate(zip(submissions, parsed, strict=True)):
        asked = _jobs(code, tests)
        jobs += asked
        owners += [index] * len(asked)
    passed = [0] * len(submissions)
    status = ["done"] * len(submissions)
    for index, job, outcome in zip(owners, jobs, box.run(jobs), strict=True):
        expected = parsed[index].expected if isinstance(job, protocol.Job) else (True,) * len(job.tests)
        passed[index] += sum(value == right for value, right in zip(outcome.values, expected, strict=True))
        if status[index] == "done" or outcome.status == "lost":
            status[index] = outcome.status
    return [Verdict(*row) for row in zip(passed, [tests.total for tests in parsed], status, strict=True)]


def _jobs(code: str, tests: hidden_tests.HiddenTests) -> list[protocol.Job | protocol.Check]:
    jobs: list[protocol.Job | protocol.Check] = []
    if tests.calls:
        jobs.append(protocol.Job(code, tests.calls, tests.setup))
    if tests.checks:
        jobs.append(protocol.Check(code, tests.checks, tests.names, tests.modules, tests.setup))
    return jobs
