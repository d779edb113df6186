"""Problems of five domains for a model as small as the demo's, with traces in four sections whose author slips.

    math       the sums and little stories of arithmetic.py
    knowledge  which of three numbers is the largest or the smallest: a letter
    code       f(x) as a sum or product, with a test shown and three hidden
    span       who has what, of two people
    creative   two sentences with two words in them
    summary    four short sentences in one

The last two are what distillation teaches; the others are what GRPO does.  Item i of a seed is a function of both, as
in arithmetic.py, and the same hash tells held-out questions from those to train on.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from thinkfirst.rl import batch
from thinkfirst.rl.data import arithmetic, author, choice, rows
from thinkfirst.rl.rewards import sections as sections_lib

CHECKED = ("math", "knowledge", "code", "span")
OPEN = ("creative", "summary")
DOMAINS = (*CHECKED, *OPEN)
COLOURS = ("red", "blue", "green")
MAX_DRAWS = 1000  # for held-out problems of a domain

Split = Literal["train", "eval"]
Rng = np.random.Generator
# A problem without its id, and what its author says in the four sections; with a slip if she may.
Made = tuple[batch.Problem, tuple[str, str, str, str], str]


def problem(seed: int, index: int, domain: str, difficulty: str, split: Split = "train") -> batch.Problem:
    """Problem `index` of a seed and domain."""
    return worked(seed, index, domain, difficulty, slips=False, split=split).problem


def worked(
    seed: int, index: int, domain: str, difficulty: str, *, slips: bool, split: Split = "train"
) -> batch.Demonstration:
    """The problem with a trace, drawn again until its question falls on the split's side; open ones have no slips."""
    rng = np.random.default_rng([seed, index, DOMAINS.index(domain), arithmetic.DIFFICULTIES.index(difficulty)])
    while True:
        asked, sections, answer = _MAKERS[domain](rng, difficulty, slips)
        if arithmetic.is_held_out(asked.question) == (split == "eval"):
            return batch.Demonstration(asked, trace(sections, answer))


def held_out(count: int, domains: tuple[str, ...] = DOMAINS) -> list[batch.Problem]:
    """`count` distinct held-out problems of each domain, whatever the seed of the run."""
    chosen: list[batch.Problem] = []
    for domain in domains:
        found: dict[str, batch.Problem] = {}
        for index in range(MAX_DRAWS):
            if len(found) == count:
                break
            asked = problem(0, index, domain, arithmetic.DIFFICULTIES[index % 3], "eval")
            found.setdefault(asked.question, asked)
        if len(found) < count:
            raise ValueError(f"data.held_out: the domain {domain} has {len(found)} held-out problems, not {count}")
        chosen += found.values()
    return chosen


def trace(sections: tuple[str, str, str, str], answer: str) -> str:
    """The completion that says so."""
    body = "\n".join(f"## {heading}\n{said}" for heading, said in zip(sections_lib.HEADINGS, sections, strict=True))
    return f"<reasoning>{body}</reasoning><answer>{answer}</answer>"


def _math(rng: Rng, difficulty: str, slips: bool) -> Made:
    found = arithmetic.drawn(rng, difficulty, long=0.25)
    right = author.equations(found.steps)
    lines = author.slipped(found.steps, rng, largest=arithmetic.LARGEST) if slips else right
    said = " ".join(f"{left}{sign}{other}={value}." for left, sign, other, value in lines)
    left, sign, other, value = lines[-1]
    undone = {"+": f"{value}-{other}={left}.", "-": f"{value}+{other}={left}.", "*": f"{other}*{left}={value}."}[sign]
    plan = ", ".join(f"{left}{sign}{other}" for left, sign, other, _ in right)
    return found.problem, (f"Plan: {plan}.", said, undone, f"The sum makes {value}."), str(value)


def _knowledge(rng: Rng, difficulty: str, slips: bool) -> Made:
    del difficulty
    numbers = tuple(int(number) for number in rng.permutation(np.arange(2, 50))[:3])
    largest = bool(rng.random() < 0.5)
    right = int(np.argmax(numbers) if largest else np.argmin(numbers))
    place = (right + int(rng.integers(1, 3))) % 3 if slips else right
    options = tuple(map(str, numbers))
    asked = choice.question(f"Which is the {'largest' if largest else 'smallest'}?", options)
    others = [number for i, number in enumerate(numbers) if i != place]
    sign = ">" if largest else "<"
    sections = (
        f"Compare {', '.join(options)}.",
        " ".join(f"{numbers[place]}{sign}{other}." for other in others),
        f"None of {others[0]}, {others[1]} is {sign} {numbers[place]}.",
        f"{numbers[place]} stands at option {'ABC'[place]}.",
    )
    return _asked(asked, "ABC"[right], "knowledge", choices=options), sections, "ABC"[place]


def _code(rng: Rng, difficulty: str, slips: bool) -> Made:
    del difficulty
    sign, other = "+-*"[int(rng.integers(3))], int(rng.integers(2, 10))
    shown, *hidden = (int(number) for number in rng.permutation(np.arange(2, 10))[:4])
    words = {"+": "plus", "-": "minus", "*": "times"}[sign]
    result = lambda x: author.apply(x, sign, other)  # noqa: E731
    asked = f"Write f(x): x {words} {other}.\nassert f({shown}) == {result(shown)}"
    tests = tuple(f"assert f({x}) == {result(x)}" for x in (shown, *hidden))
    wrote = "+-*".replace(sign, "")[int(rng.integers(2))] if slips else sign
    sections = (
        f"Take x {wrote} {other}.",
        f"f({shown})={shown}{wrote}{other}={author.apply(shown, wrote, other)}.",
        f"f(1)=1{wrote}{other}={author.apply(1, wrote, other)}.",
        f"f gives x {wrote} {other} back.",
    )
    return _asked(asked, "", "code", tests=tests), sections, f"def f(x): return x {wrote} {other}"


def _span(rng: Rng, difficulty: str, slips: bool) -> Made:
    del difficulty
    (mine, _), (theirs, _) = (arithmetic.NAMES[i] for i in rng.permutation(len(arithmetic.NAMES))[:2])
    things = [
        f"{COLOURS[int(rng.integers(len(COLOURS)))]} {arithmetic.ITEMS[item]}"
        for item in rng.permutation(len(arithmetic.ITEMS))[:2]
    ]
    who = int(rng.integers(2))
    name, other = (mine, theirs) if who == 0 else (theirs, mine)
    told = 1 - who if slips else who
    asked = f"{mine} has {things[0]}. {theirs} has {things[1]}. What does {name} have?"
    sections = (
        f"Look for what {name} has.",
        f"{name} has {things[told]}.",
        f"{other} has {things[1 - told]}, not {things[told]}.",
        f"What {name} has: {things[told]}.",
    )
    return _asked(asked, things[who], "span"), sections, things[told]


def _creative(rng: Rng, difficulty: str, slips: bool) -> Made:
    del difficulty, slips
    name, she = arithmetic.NAMES[int(rng.integers(len(arithmetic.NAMES)))]
    items, others = (arithmetic.ITEMS[item] for item in rng.permutation(len(arithmetic.ITEMS))[:2])
    colour = COLOURS[int(rng.integers(len(COLOURS)))]
    asked = f"Use '{name}' and '{items}' and '{others}' and '{colour}' in two sentences."
    sections = (
        f"Use {name}, {items}, {others}.",
        f"The {items} come first, then {others}.",
        f"Two sentences, and {colour} is in.",
        f"{name} has {items} and {others}.",
    )
    number = int(rng.integers(2, 30))
    text = (
        f"{name} has all of the {items} and {others} that {she.lower()} gets. "
        f"{she} has {number} of them and they are {colour}."
    )
    return _asked(asked, "", "creative"), sections, text


def _summary(rng: Rng, difficulty: str, slips: bool) -> Made:
    del difficulty, slips
    (mine, _), (theirs, _) = (arithmetic.NAMES[i] for i in rng.permutation(len(arithmetic.NAMES))[:2])
    one, two = (arithmetic.ITEMS[item] for item in rng.permutation(len(arithmetic.ITEMS))[:2])
    first, second = (int(number) for number in rng.integers(2, 20, size=2))
    told = f"{mine} has {first} {one}. {theirs} has {second} {two}. {mine} gets more {one}. {theirs} gets more {two}."
    sections = (
        f"Say what {mine} and {theirs} do.",
        f"{mine}: more {one}. {theirs}: more {two}.",
        f"One sentence, with {mine} and {theirs} in it.",
        f"Both {mine} and {theirs} gain.",
    )
    text = f"{mine} with the {one} and {theirs} with the {two} get more of what they have."
    return _asked(f"Sum up in one sentence.\n{told}", "", "summary"), sections, text


def _asked(
    question: str, answer: str, domain: str, *, choices: tuple[str, ...] = (), tests: tuple[str, ...] = ()
) -> batch.Problem:
    return batch.Problem(rows.identity(question), question, answer, domain=domain, choices=choices, tests=tests)


_MAKERS: dict[str, Callable[[Rng, str, bool], Made]] = {
    "math": _math,
    "knowledge": _knowledge,
    "code": _code,
    "span": _span,
    "creative": _creative,
    "summary": _summary,
}
