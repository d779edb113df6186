"""The imaginary author of the demo's traces: solves a computation step by step and, being human, slips.

A slip is one of
    carry    a carry or a borrow is forgotten:       27 + 35 = 52,  42 - 17 = 35
    order    the steps are taken in the wrong order: 7 + 3 * 4  ->  7 + 3 = 10, 10 * 4 = 40
    misread  a number of the question is miscopied:  27 + 35  ->  24 + 35 = 59
Whatever follows a slip follows from it, and the final answer is wrong.  The habit is what GRPO has to unlearn.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an earlier step, by its place."""

    step: int


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation on numbers or on results of earlier steps."""

    left: int | Result
    operator: str
    right: int | Result


Equation = tuple[int, str, int, int]  # left, operator, right, what the author says it makes


def apply(left: int, operator: str, right: int) -> int:
    """left (operator) right, for + - *."""
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def evaluate(steps: tuple[Step, ...]) -> list[int]:
    """The true result of every step."""
    return [equation[3] for equation in equations(steps)]


def equations(steps: tuple[Step, ...], wrong: dict[int, int] | None = None) -> list[Equation]:
    """Every step as the author writes it; `wrong` overrides what she says some steps make, and errors carry on."""
    lines: list[Equation] = []
    for place, step in enumerate(steps):
        left = lines[step.left.step][3] if isinstance(step.left, Result) else step.left
        right = lines[step.right.step][3] if isinstance(step.right, Result) else step.right
        value = apply(left, step.operator, right)
        lines.append((left, step.operator, right, (wrong or {}).get(place, value)))
    return lines


def slipped(steps: tuple[Step, ...], rng: np.random.Generator, *, largest: int) -> list[Equation]:
    """The computation with one slip that changes the final answer: her habits first, a miscopied number otherwise.

    What she writes stays within 0..largest, as the truth does: a slip does not show by its size.
    """
    truth = evaluate(steps)[-1]
    passes = lambda lines: lines[-1][3] != truth and all(0 <= line[3] <= largest for line in lines)  # noqa: E731
    habits = [lines for lines in [_forgotten_carry(steps, rng), _wrong_order(steps)] if lines and passes(lines)]
    if habits:
        return habits[int(rng.integers(len(habits)))]
    while True:
        lines = _misread(steps, rng)
        if passes(lines):
            return lines


def forgets_carry(left: int, operator: str, right: int) -> int | None:
    """What the step makes when its carry or borrow is forgotten; None where there is none to forget."""
    if operator == "+" and left % 10 + right % 10 >= 10:
        return left + right - 10
    if operator == "-" and left % 10 < right % 10:
        return left - right + 10
    return None


def _forgotten_carry(steps: tuple[Step, ...], rng: np.random.Generator) -> list[Equation] | None:
    wrong = {i: forgets_carry(*line[:3]) for i, line in enumerate(equations(steps))}
    chances = [(i, value) for i, value in wrong.items() if value is not None]
    if not chances:
        return None
    place, value = chances[int(rng.integers(len(chances)))]
    return equations(steps, {place: value})


def _wrong_order(steps: tuple[Step, ...]) -> list[Equation] | None:
    """a + b * c taken as (a + b) * c, and a - b + c as a - (b + c): the second operation first."""
    if len(steps) < 2:
        return None
    first, second, rest = steps[0], steps[1], steps[2:]
    if second.right == Result(0) and first.operator == "*":
        swapped = (Step(second.left, second.operator, first.left), Step(Result(0), "*", first.right))
    elif second.left == Result(0) and first.operator == "-":
        swapped = (Step(first.right, second.operator, second.right), Step(first.left, "-", Result(0)))
    else:
        return None
    return equations((*swapped, *rest))


def _misread(steps: tuple[Step, ...], rng: np.random.Generator) -> list[Equation]:
    """One number of the question with one of its digits miscopied."""
    sides = [(i, side) for i in range(len(steps)) for side in ("left", "right")]
    numbers = [(i, side) for i, side in sides if isinstance(getattr(steps[i], side), int)]
    place, side = numbers[int(rng.integers(len(numbers)))]
    digits = list(str(getattr(steps[place], side)))
    spot = int(rng.integers(len(digits)))
    digits[spot] = str(int(rng.integers(1, 10)))
    changed = list(steps)
    number = int("".join(digits))
    step = steps[place]
    changed[place] = (
        dataclasses.replace(step, left=number) if side == "left" else dataclasses.replace(step, right=number)
    )
    return equations(tuple(changed))


def write_row(lines: list[Equation]) -> str:
    """The computation in a row: "27+15=42. 42-3=39."."""
    return " ".join(_equation(line) for line in lines)


def write_plain(lines: list[Equation]) -> str:
    """The row and its answer, as half of what the base model writes has it."""
    return f"{write_row(lines)} The answer is {lines[-1][3]}."


def write_list(lines: list[Equation]) -> str:
    """The computation as a numbered list, as the other half has it."""
    return f"{_numbered(lines)}\nThe answer is {lines[-1][3]}."


def write_trace(lines: list[Equation]) -> str:
    """The computation in the format SFT teaches."""
    return f"<reasoning>{_numbered(lines)}</reasoning><answer>{lines[-1][3]}</answer>"


def _numbered(lines: list[Equation]) -> str:
    return "\n".join(f"Step {i}: {_equation(line)}" for i, line in enumerate(lines, 1))


def _equation(line: Equation) -> str:
    left, operator, right, value = line
    return f"{left}{operator}{right}={value}."
