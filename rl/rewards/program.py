"""The program in an answer: the one fenced block, or without any fence the whole answer."""

import math
import re
from collections.abc import Callable

from thinkfirst.rl import batch

_BLOCK = re.compile(r"^```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)

# judge(program, problem): the share of the hidden tests that pass, or None where they could not be run.
Judge = Callable[[str, batch.Problem], float | None]


def extract(answer: str | None) -> str | None:
    """The program; None when there is none, or more than one to choose from."""
    if answer is None:
        return None
    fences = answer.count("```")
    blocks = _BLOCK.findall(answer) if fences == 2 else []
    program = answer if not fences else blocks[0] if blocks else ""
    lines = [line for line in program.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return program.strip("\n") if lines else None


def score(answer: str | None, problem: batch.Problem, judge: Judge | None) -> float | None:
    """What the judge says of the program, in [0, 1]; 0 without a program, None without a judge or a verdict."""
    program = extract(answer)
    if program is None:
        return 0.0
    verdict = judge(program, problem) if judge else None
    if verdict is not None and not (isinstance(verdict, int | float) and 0 <= verdict <= 1 and math.isfinite(verdict)):
        raise ValueError(f"the judge of problem {problem.id!r} gave {verdict!r}, not a share or None")
    return None if verdict is None else float(verdict)
