"""When two answers are the same.  Exact: no substring, no concatenation, no credit for being near.

A number equals a number of the same value and nothing else; a text equals a text that differs in case, spacing or
surrounding punctuation only.  Numbers are ASCII digits: full-width or Arabic-Indic digits make a text, which equals no
number; the typographic minus (U+2212) is a sign.  A currency sign and a percent sign are units and are dropped, so
'50%' is 50, not 1/2.

Left out on purpose: algebra ('n!' and 'n' differ by punctuation only), units in words, powers of ten, other spellings
of a number.  Such gold answers need a checker of their own.
"""

import fractions
import re

# Longer texts are no number: arithmetic on what a policy wrote must stay cheap.
MAX_NUMBER_LENGTH = 64

_MINUS = "-\u2212"
_SIGN = "[-+\u2212]"
_CURRENCY = "[$\u00a2\u00a3\u00a5\u20a9\u20ac\u20b9\u20bd]"
_INTEGER = "(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<prefix>{_SIGN}?{_CURRENCY}?|{_CURRENCY}{_SIGN})"
    rf"(?P<value>{_INTEGER}/{_INTEGER}|{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)"
    r"%?\.?"
)
# Takes every run of digits whole and never gives one back, so it is linear; what it finds still has to parse.
# A sign after a word, a number or a bracket is an operator: '10-5' holds 10 and 5, '= -5' holds -5.
_CANDIDATE = re.compile(rf"(?<![\w.,/)])(?:{_SIGN}?{_CURRENCY}?|{_CURRENCY}{_SIGN})\.?[0-9]+(?:[.,/][0-9]+)*")

_PUNCTUATION = " .,;:!?\"'`*_"
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def parse_number(text: str) -> fractions.Fraction | None:
    """The exact value of a text that is one number and nothing else, else None."""
    text = text.strip()
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    numerator, _, denominator = match["value"].replace(",", "").partition("/")
    if denominator and int(denominator) == 0:
        return None
    value = fractions.Fraction(numerator) / int(denominator or 1)
    return -value if any(sign in match["prefix"] for sign in _MINUS) else value


def equal(answer: str | None, gold: str) -> bool:
    """Whether `answer` says the same as `gold`; an empty or missing answer never does, whatever the gold."""
    if answer is None:
        return False
    value, gold_value = parse_number(answer), parse_number(gold)
    if value is not None or gold_value is not None:
        return value == gold_value
    normal = _normalised(answer)
    return normal != "" and normal == _normalised(gold)


def numbers(text: str) -> list[str]:
    """Every number that stands in `text` as a whole token, as it is written, in order."""
    found = (match[0] for match in _CANDIDATE.finditer(text))
    return [number for number in found if parse_number(number) is not None]


def _normalised(text: str) -> str:
    """Case, spacing and surrounding punctuation removed.

    Brackets go only from around one word, as in '(B)': elsewhere they mean something, '[1, 2)' is not '(1, 2]'.
    """
    text = " ".join(text.casefold().split()).strip(_PUNCTUATION)
    if len(text) > 2 and _BRACKETS.get(text[0]) == text[-1] and text[1:-1].isalnum():
        return text[1:-1]
    return text
