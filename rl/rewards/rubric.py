"""A text for which there is no single answer: creative writing, summaries, open questions.

    score = prose * mean of the items that apply

    length        whether it is neither a stub nor without end; None when the prompt says how long (a constraint)
    coverage      share of the source's main words in it, for a summary
    originality   1 less the share of it that stands in the prompt, word for word, five words in a row
    constraints   share of what the prompt asks of the form
    judge         what a judge given by the caller says, in [0, 1]; None without one

The prompt of a summary is a line that says what to do, then the source; of any other text it is all instruction.

`prose` is a factor and no item, since a list of the source's words covers it, copies nothing and has any length: it
is low for a text with few of the small words that join others, and for one that repeats itself.  These items are a
floor, not a taste: a dull text gets them all.  Only a judge can tell it from a good one.
"""

import collections
import math
import re
from collections.abc import Callable

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import constraints, trace

SUMMARY_DOMAINS = ("summary", "dialogue")
NUM_MAIN_WORDS = 8
COPIED_RUN = 5
# Small words are 35 to 50 of a hundred in English prose; a fifth is little.
SMALL_SHARE = 0.2
# (shortest, longest) in words that earns full marks where the prompt says nothing; half of it or twice it earns none.
OPEN_WORDS = (40, 600)
# The same for a summary, as shares of its source.
SUMMARY_SHARES = (0.05, 0.4)

# judge(text, problem): how good the text is, in [0, 1], or None where that could not be told.
Judge = Callable[[str, batch.Problem], float | None]

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_SMALL = frozenset(
    """
    he she they them him her his hers their who whom whose which what where when while why how if than though although
    until up down out off under between through during about against not no nor only very just too all any each few
    more most other some such own same had do does did me my mine myself himself herself itself themselves
    """.split()  # noqa: SIM905 - eighty quoted words would hide the table
).union(trace.STOCK_WORDS) - {"step", "steps", "answer", "answers", "result", "final", "problem", "question"}


def parts(text: str | None, problem: batch.Problem, judge: Judge | None = None) -> dict[str, float | None]:
    """Every item and `prose`; all that apply are 0 without a text."""
    said = words(text or "")
    is_summary = problem.domain in SUMMARY_DOMAINS
    instruction, _, below = problem.question.partition("\n") if is_summary else (problem.question, "", "")
    source = words(below.strip() or problem.question)
    asked = constraints.asks_for_length(instruction)
    found: dict[str, float | None] = {
        "prose": prose(said),
        "length": None if asked else _length(len(said), len(source) if is_summary else None),
        "coverage": coverage(said, source) if is_summary else None,
        "originality": originality(said, source),
        "constraints": constraints.score(text or "", instruction),
        "judge": None,
    }
    if not said:
        return {name: None if value is None else 0.0 for name, value in found.items()}
    if judge is not None and (verdict := judge(text or "", problem)) is not None:
        if not (isinstance(verdict, int | float) and math.isfinite(verdict) and 0 <= verdict <= 1):
            raise ValueError(f"the judge of problem {problem.id!r} gave {verdict!r}, not a number in [0, 1] or None")
        found["judge"] = float(verdict)
    return found


def combine(found: dict[str, float | None]) -> float:
    """The score that the items are worth."""
    items = [value for name, value in found.items() if name != "prose" and value is not None]
    factor = found["prose"]
    assert factor is not None and items
    return factor * math.fsum(items) / len(items)


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.casefold())


def prose(said: list[str]) -> float:
    """How much a text is made as sentences are, in [0, 1]: small words among the others, and no refrain."""
    if not said:
        return 0.0
    small = sum(word in _SMALL for word in said) / len(said)
    runs = [tuple(said[place : place + 3]) for place in range(len(said) - 2)]
    fresh = len(set(runs)) / len(runs) if runs else 1.0
    return min(1.0, small / SMALL_SHARE) * min(1.0, fresh / 0.8)


def coverage(said: list[str], source: list[str]) -> float | None:
    """Share of the source's main words that are said; None for a source without any."""
    counts = collections.Counter(word for word in source if word not in _SMALL and len(word) > 2)
    main = [word for word, _ in counts.most_common(NUM_MAIN_WORDS)]
    return sum(word in set(said) for word in main) / len(main) if main else None


def originality(said: list[str], source: list[str]) -> float:
    """1 less the share of the words that stand in a run of five copied from the source."""
    runs = {tuple(source[place : place + COPIED_RUN]) for place in range(len(source) - COPIED_RUN + 1)}
    copied: set[int] = set()
    for place in range(len(said) - COPIED_RUN + 1):
        if tuple(said[place : place + COPIED_RUN]) in runs:
            copied.update(range(place, place + COPIED_RUN))
    return 1 - len(copied) / len(said) if said else 0.0


def _length(count: int, source: int | None) -> float:
    """1 between shortest and longest, falling in a straight line to 0 at half and at twice of them."""
    low, high = OPEN_WORDS if source is None else (SUMMARY_SHARES[0] * source, SUMMARY_SHARES[1] * source)
    if count < low:
        return max(0.0, 2 * count / low - 1)
    return max(0.0, min(1.0, 2 - count / high)) if high else 0.0
