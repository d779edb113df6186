"""Answers that are a span of text: exact match and F1 as HotpotQA defines them, and the match of general answers.

Normalised: lower case, punctuation dropped, then the articles a, an, the, then spacing (Z. Yang et al., HotpotQA,
arXiv 1809.09600, official evaluation).  F1 is the harmonic mean of precision and recall of the words, and 0 when one
side is yes, no or noanswer and the other is not the same.

One rule is added.  Dropping punctuation makes 5 of -5 and 12 of 1/2, and words around a date make a wrong day nearly
right.  So a number in the answer that the gold has not makes both scores 0, and a gold that is one number is equalled
by that number alone.
"""

import collections
import string

from thinkfirst.rl.rewards import answers

_ARTICLES = frozenset(("a", "an", "the"))
_VERDICTS = frozenset(("yes", "no", "noanswer"))
_DROPPED = str.maketrans("", "", string.punctuation + "\u2018\u2019\u201c\u201d\u2013\u2014")


def exact(answer: str | None, gold: str) -> bool:
    """Whether both are the same words and numbers; an answer without words never is."""
    if answer is None or (answers.parse_number(answer) is None) != (answers.parse_number(gold) is None):
        return False
    if answers.parse_number(answer) is not None:
        return answers.equal(answer, gold)
    words = normalised(answer)
    return bool(words) and words == normalised(gold) and _numbers(answer) == _numbers(gold)


def f1(answer: str | None, gold: str) -> float:
    """Overlap of the words, in [0, 1]."""
    if answer is None:
        return 0.0
    if answers.parse_number(gold) is not None or answers.parse_number(answer) is not None:
        return float(exact(answer, gold))
    words, gold_words = normalised(answer), normalised(gold)
    if words != gold_words and any(len(side) == 1 and side[0] in _VERDICTS for side in (words, gold_words)):
        return 0.0
    if _numbers(answer) - _numbers(gold):
        return 0.0
    shared = sum((collections.Counter(words) & collections.Counter(gold_words)).values())
    return 2 * shared / (len(words) + len(gold_words)) if shared else 0.0


def normalised(text: str) -> list[str]:
    """The words that count."""
    return [word for word in text.casefold().translate(_DROPPED).split() if word not in _ARTICLES]


def _numbers(text: str) -> collections.Counter:
    """The numbers of a text by value, each as often as it stands there."""
    return collections.Counter(answers.parse_number(number) for number in answers.numbers(text))
