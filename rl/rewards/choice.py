"""Multiple choice: the letter, or the text of one option and of no other; never a substring.

The gold is a letter, the text of an option, or a label 1, 2, ... as some of ARC's questions have.  An answer may give
letter and text together ("B) Paris"), and then both must be of the same option.
"""

import re

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import answers

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WRAPPING = " \t\n.,:;!?\"'`*_()[]{}"
_LETTER_AND_TEXT = re.compile(r"[(\[]?([A-Za-z0-9])[)\].:]+\s*(\S.*)", re.DOTALL)
_NAMED = re.compile(r"(?:option|choice)\s+", re.IGNORECASE)


def equal(answer: str | None, problem: batch.Problem) -> bool:
    """Whether `answer` names the right option and no other."""
    gold = _gold(problem)
    if answer is None:
        return False
    labels = _labels(problem)
    return chosen(answer, problem.choices, labels) == gold


def chosen(answer: str, choices: tuple[str, ...], labels: str) -> int | None:
    """The place of the option that an answer names; None when it names none, or more than one."""
    text = _NAMED.sub("", answer.strip().strip("*_`"), count=1) if _NAMED.match(answer.strip().strip("*_`")) else answer
    bare = text.strip(_WRAPPING)
    if (place := _label(bare, labels)) is not None:
        return place
    if (place := _unique(text, choices)) is not None:
        return place
    if match := _LETTER_AND_TEXT.fullmatch(text.strip().strip("*_`")):
        place = _label(match[1], labels)
        return place if place is not None and place == _unique(match[2], choices, place) else None
    return None


def _gold(problem: batch.Problem) -> int:
    """The place of the right option; ValueError when the problem names none."""
    answer, choices = problem.answer.strip(), problem.choices
    place = _label(answer.strip(_WRAPPING), _LETTERS[: len(choices)] or _LETTERS)
    if place is None:
        place = _unique(answer, choices)
    if place is None:
        place = _label(answer, _labels(problem))
    if place is None:
        raise ValueError(f"problem {problem.id!r}: its answer {answer!r} is none of its choices {list(choices)}")
    return place


def _labels(problem: batch.Problem) -> str:
    """Letters, or digits where the gold is a digit and no option's text."""
    count = len(problem.choices)
    digits = "123456789"[:count]
    if problem.answer.strip() in list(digits) and _unique(problem.answer, problem.choices) is None:
        return digits
    return _LETTERS[:count] or _LETTERS


def _label(text: str, labels: str) -> int | None:
    return labels.index(text.upper()) if len(text) == 1 and text.isascii() and text.upper() in labels else None


def _unique(text: str, choices: tuple[str, ...], preferred: int | None = None) -> int | None:
    """The only option whose text this is; of several, the preferred one."""
    places = [place for place, choice in enumerate(choices) if answers.equal(text, choice)]
    if preferred in places:
        return preferred
    return places[0] if len(places) == 1 else None
