"""Correctness by domain: which rule a problem's answer is compared by, and what that says.

    math      quantity       numbers, fractions, percent, money, units, intervals, lists
    choice    choice         any problem with choices, whatever its domain is called
    code      program        any with tests, likewise: a judge runs them; without one, None
    span      span           the mean of exact match and F1
    general   span.exact     the same words and numbers
    open      rubric         no single answer: correctness is None

The answer is read from a well-formed completion only; any other scores 0.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import choice, program, quantity, span

Kind = Literal["math", "choice", "code", "span", "general", "open"]

# Names under which a domain is met in data sets.
NAMES: Mapping[str, Kind] = {
    **{kind: kind for kind in get_args(Kind)},
    "science": "general",
    "logic": "general",
    "knowledge": "general",
    "creative": "open",
    "summary": "open",
    "dialogue": "open",
}


def kind(problem: batch.Problem) -> Kind:
    """The rule for a problem; ValueError for a domain nobody knows."""
    if problem.choices:
        return "choice"
    if problem.tests:
        return "code"
    if problem.domain not in NAMES:
        raise ValueError(f"problem {problem.id!r}: domain {problem.domain!r} is none of {', '.join(NAMES)}")
    return NAMES[problem.domain]


def extracted(answer: str | None, problem: batch.Problem) -> str | None:
    """What of a well-formed completion's answer is judged: of code the program, of all else the whole."""
    return program.extract(answer) if kind(problem) == "code" else answer


def correctness(answer: str | None, problem: batch.Problem, judge: program.Judge | None = None) -> float | None:
    """How right the answer is, in [0, 1]; None where there is no single answer, or nobody to judge it."""
    match kind(problem):
        case "math":
            return float(quantity.equal(answer, problem.answer))
        case "choice":
            return float(choice.equal(answer, problem))
        case "code":
            return program.score(answer, problem, judge)
        case "span":
            return (span.exact(answer, problem.answer) + span.f1(answer, problem.answer)) / 2
        case "general":
            return float(span.exact(answer, problem.answer))
        case "open":
            return None
