"""Our own arithmetic problems, in symbols and in words, and the imaginary author who solves them with human slips.

Everything is a pure function of (seed, index): problem i of a seed is the same in every run, so a data cursor is a
number.  Training and held-out problems are told apart by a hash of the question: they cannot share one.

    easy    one operation                          "What is 27 + 15?"
    medium  two or three operations                "Ana has 12 pens. She buys 9 more. She loses 4. ..."
    hard    products inside sums, and distractors  "Ana is 9 years old. She has 7 pens and buys 3 boxes of 6 ..."
"""

import dataclasses
import hashlib
import itertools
from typing import Literal

import numpy as np

from thinkfirst.rl import batch
from thinkfirst.rl.data import author

DIFFICULTIES = ("easy", "medium", "hard")
HELD_OUT_SHARE = 0.1
LARGEST = 49  # every true intermediate result lies in 0..LARGEST
LONG_SHARE = {"medium": 0.4, "hard": 0.5}  # of the problems of a difficulty, those of three steps; the others have two

Split = Literal["train", "eval"]

NAMES = (("Ana", "She"), ("Ben", "He"), ("Cleo", "She"), ("Dan", "He"), ("Eva", "She"), ("Finn", "He"), ("Ida", "She"))
ITEMS = ("pens", "apples", "coins", "cards", "books", "shells")
CONTAINERS = ("boxes", "bags", "packs")
GAINS = ("{She} buys {n} more.", "{She} finds {n} more.", "{She} gets {n} from a friend.")
LOSSES = ("{She} loses {n}.", "{She} gives away {n}.", "{She} sells {n}.")
DISTRACTORS = ("{Name} is {n} years old.", "{Other} has {n} {other_items}.", "It is {n} degrees outside.")


@dataclasses.dataclass(frozen=True)
class Worked:
    """A problem with the computation behind it."""

    problem: batch.Problem
    steps: tuple[author.Step, ...]


def problem(seed: int, index: int, difficulty: str, split: Split = "train", *, long: float = 1.0) -> batch.Problem:
    """Problem `index` of a seed, without its solution."""
    return worked(seed, index, difficulty, split, long=long).problem


def worked(seed: int, index: int, difficulty: str, split: Split = "train", *, long: float = 1.0) -> Worked:
    """Problem `index` of a seed with its computation; drawn again until its question falls on the split's side.

    `long` scales the share of three-step problems.
    """
    rng = np.random.default_rng([seed, index, DIFFICULTIES.index(difficulty)])
    while True:
        found = drawn(rng, difficulty, long=long)
        if is_held_out(found.problem.question) == (split == "eval"):
            return found


def drawn(rng: np.random.Generator, difficulty: str, *, long: float = 1.0) -> Worked:
    """The next problem of a random stream, of either side of the split."""
    steps = _draw_steps(rng, difficulty, long)
    in_words = rng.random() < 0.5 or difficulty == "hard"
    question = _in_words(rng, steps, difficulty) if in_words else _in_symbols(steps)
    found = batch.Problem(
        id=hashlib.sha256(question.encode()).hexdigest()[:16],
        question=question,
        answer=str(author.evaluate(steps)[-1]),
        difficulty=difficulty,
    )
    return Worked(found, steps)


def sums(seed: int, index: int, count: int) -> list[author.Step]:
    """Row `index` of a drill: single operations, none of which a held-out question asks for in symbols."""
    rng = np.random.default_rng([seed, index, len(DIFFICULTIES)])
    drawn = (_draw_steps(rng, "easy", 0.0) for _ in itertools.count())
    allowed = (step for (step,) in drawn if not is_held_out(_in_symbols((step,))))
    return list(itertools.islice(allowed, count))


def is_held_out(question: str) -> bool:
    """True for the share of questions that only evaluation may use."""
    digest = hashlib.sha256(question.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def held_out(seed: int, count_per_difficulty: int, *, long: float = 1.0) -> list[batch.Problem]:
    """Distinct held-out problems, the same number of each difficulty."""
    chosen: dict[str, batch.Problem] = {}
    for level, difficulty in enumerate(DIFFICULTIES):
        index = 0
        while len(chosen) < (level + 1) * count_per_difficulty:
            found = problem(seed, index, difficulty, "eval", long=long)
            chosen.setdefault(found.question, found)
            index += 1
    return list(chosen.values())


def _draw_steps(rng: np.random.Generator, difficulty: str, long: float) -> tuple[author.Step, ...]:
    """A computation whose every result is a whole number in 0..LARGEST."""
    while True:
        steps = _chain(rng, difficulty, long)
        if all(0 <= value <= LARGEST for value in author.evaluate(steps)):
            return steps


def _chain(rng: np.random.Generator, difficulty: str, long: float) -> tuple[author.Step, ...]:
    number = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    sign = lambda: "+-"[int(rng.integers(2))]  # noqa: E731
    is_long = lambda: bool(rng.random() >= 1 - long * LONG_SHARE[difficulty])  # noqa: E731
    previous = author.Result
    if difficulty == "easy":
        if rng.random() < 0.25:
            return (author.Step(number(2, 9), "*", number(2, 9)),)
        return (author.Step(number(2, 47), sign(), number(2, 29)),)
    if difficulty == "medium":
        if rng.random() < 0.25:
            first = author.Step(number(2, 9), "*", number(2, 9))
        else:
            first = author.Step(number(5, 39), sign(), number(2, 29))
        rest = [author.Step(previous(i), sign(), number(2, 19)) for i in range(1 + is_long())]
        return (first, *rest)
    product = author.Step(number(2, 9), "*", number(2, 9))
    joined = author.Step(number(5, 39), sign(), previous(0))
    if not is_long():
        return (product, joined)
    return (product, joined, author.Step(previous(1), sign(), number(2, 19)))


def _in_symbols(steps: tuple[author.Step, ...]) -> str:
    """The computation as one expression, read with the usual precedence."""
    text = ""
    for step in steps:
        left = text if isinstance(step.left, author.Result) else str(step.left)
        right = text if isinstance(step.right, author.Result) else str(step.right)
        text = f"{left} {step.operator} {right}"
    return f"What is {text}?"


def _in_words(rng: np.random.Generator, steps: tuple[author.Step, ...], difficulty: str) -> str:
    """The computation as a little story; hard ones carry a number that does not matter."""
    pick = lambda options: options[int(rng.integers(len(options)))]  # noqa: E731
    (name, she), items, container = pick(NAMES), pick(ITEMS), pick(CONTAINERS)
    sentences, rest = _opening(steps, name, she, items, container)
    for step in rest:
        sentences.append(pick(GAINS if step.operator == "+" else LOSSES).format(She=she, n=step.right))
    if difficulty == "hard":
        other = pick([other for other, _ in NAMES if other != name])
        other_items = pick([other_item for other_item in ITEMS if other_item != items])
        extra = pick(DISTRACTORS).format(Name=name, Other=other, other_items=other_items, n=int(rng.integers(2, 40)))
        sentences.insert(pick((0, len(sentences))), extra)  # not in between: "She" must stay the one who acts
    return " ".join([*sentences, f"How many {items} does {name} have?"])


def _opening(
    steps: tuple[author.Step, ...], name: str, she: str, items: str, container: str
) -> tuple[list[str], tuple[author.Step, ...]]:
    """First sentences, and the steps still to be told."""
    first = steps[0]
    if first.operator == "*" and len(steps) > 1 and isinstance(steps[1].right, author.Result):
        verb = "buys" if steps[1].operator == "+" else "sells"
        story = f"{name} has {steps[1].left} {items} and {verb} {first.left} {container} of {first.right} {items}."
        return [story], steps[2:]
    if first.operator == "*":
        return [f"{name} has {first.left} {container} of {first.right} {items}."], steps[1:]
    return [f"{name} has {first.left} {items}."], steps
