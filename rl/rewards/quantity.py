"""When two mathematical answers are the same, however their values are written; exact, as in `answers`.

Beyond what `answers.equal` knows:

* LaTeX around a value (`\\boxed{}`, `$...$`, `\\frac{3}{4}`, `\\text{cm}`), Markdown stars, and a leading `x =`.
* Mixed numbers `1 1/2`, "minus 5", scientific `1.5e3`, scale words: 5 million is 5,000,000.
* Units.  One side may leave its unit out; two units must be the same, in singular or plural, or as an abbreviation.
  Units are not converted: 100 cm is not 1 m.
* Money.  A currency is a unit, before the number or after it.
* Percent.  p% equals p, for the sign may be left out, and it equals p/100, its value; p% and q% compare as p and q.
* Intervals with their brackets, ranges of text ("3 to 5", "between 3 and 5", "3-5"), which are closed intervals, and
  lists of numbers ("3 and 5", "3, 5"), which may come in any order.

Whatever is neither is compared as text by `answers.equal`.  Left out: algebra, conversion, rounding, words for numbers.
"""

import fractions
import re
from typing import NamedTuple

from thinkfirst.rl.rewards import answers

# Longer texts are no quantity: arithmetic on what a policy wrote must stay cheap.
MAX_LENGTH = 200
MAX_EXPONENT = 30

_CURRENCIES = {"$": "dollar", "\u20ac": "euro", "\u00a3": "pound", "\u00a5": "yen", "\u20b9": "rupee", "\u00a2": "cent"}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNITS = {
    "usd": "dollar", "buck": "dollar", "eur": "euro", "gbp": "pound", "percent": "%", "pct": "%",
    "mm": "millimeter", "millimetre": "millimeter", "cm": "centimeter", "centimetre": "centimeter", "m": "meter",
    "metre": "meter", "km": "kilometer", "kilometre": "kilometer", "in": "inch", "inches": "inch", "ft": "foot",
    "feet": "foot", "yd": "yard", "mi": "mile", "g": "gram", "kg": "kilogram", "mg": "milligram", "lb": "pound",
    "oz": "ounce", "ml": "milliliter", "millilitre": "milliliter", "l": "liter", "litre": "liter", "s": "second",
    "sec": "second", "min": "minute", "h": "hour", "hr": "hour", "people": "person", "children": "child",
    "men": "man", "women": "woman", "\u00b0": "degree",
}  # fmt: skip
# Words that make a statement about a number and do not say what it counts.
_NO_UNIT = frozenset(
    """
    or and not no nor but about around approximately roughly nearly almost more less least most than to from between
    plus minus times divided by over under above below is are was isn wrong right maybe either any other if it
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety dozen half quarter third squared cubed
    """.split()  # noqa: SIM905 - sixty quoted words would hide the table
)

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,2}})?"
_VALUE = rf"(?:{_WHOLE} +{_WHOLE}/{_WHOLE}|{_WHOLE}/{_WHOLE}|{_DECIMAL})"
_CURRENCY = "[" + "".join(_CURRENCIES) + "]"
_QUANTITY = re.compile(
    rf"(?P<before>(?:-|\+|minus |negative )? ?(?:{_CURRENCY}|USD |EUR |GBP )?-?) ?(?P<value>{_VALUE})"
    rf"(?P<after> ?(?:%|{_CURRENCY}|[A-Za-z\u00b0][A-Za-z/.\u00b0\u00b2\u00b3^23 -]*)?)\.?"
)
_INTERVAL = re.compile(r"([\[(]) ?([^,;]+)[,;] ?([^,;]+?) ?([\])])")
_RANGE = re.compile(rf"(?:between )?(?P<low>[-+]?{_VALUE})(?: to | and |-| - )(?P<high>[-+]?{_VALUE})")
_LATEX = (
    (re.compile(r"\\boxed ?\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}"), r"\1"),
    (re.compile(r"\\[dt]?frac ?\{([0-9,]+)\} ?\{([0-9,]+)\}"), r" \1/\2"),
    (re.compile(r"\\(?:text|mathrm|textbf|mbox) ?\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^ ?\{?\\circ\}?"), "\u00b0"),
    (re.compile(r"\\[,;! ]|\\left|\\right"), ""),
    (re.compile(r"\\([%$])"), r"\1"),
)
_LEADING_VARIABLE = re.compile(r"[A-Za-z] ?= ?(?=[^=])")


class Quantity(NamedTuple):
    """A number and what it counts; "" where that is not said, "%" for percent."""

    value: fractions.Fraction
    unit: str = ""


class Interval(NamedTuple):
    """Both ends, and the brackets that say whether they belong to it."""

    opening: str
    low: fractions.Fraction
    high: fractions.Fraction
    closing: str


def equal(answer: str | None, gold: str) -> bool:
    """Whether `answer` has the value of `gold`; an empty or missing answer never does."""
    if answer is None or max(len(answer), len(gold)) > MAX_LENGTH:
        return answers.equal(answer, gold)
    said, meant = _cleaned(answer), _cleaned(gold)
    for read in (parse, interval, numbers):
        value, gold_value = read(said), read(meant)
        if isinstance(value, Quantity) and isinstance(gold_value, Quantity):
            return _same(value, gold_value)
        if value is not None or gold_value is not None:
            return value == gold_value
    return answers.equal(said, meant)


def parse(text: str) -> Quantity | None:
    """The one quantity that a text is, else None."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    before, after = match["before"], match["after"].strip(" .").casefold()
    if before.count("-") + before.count("minus") + before.count("negative") > 1:
        return None
    value, counted = _number(match["value"]), _unit(after)
    if value is None or counted is None:
        return None
    scale, unit = counted
    money = [name for sign, name in _CURRENCIES.items() if sign in before]
    money += [_UNITS[code] for code in ("usd", "eur", "gbp") if code.upper() in before]
    if money and unit not in ("", money[0]):
        return None
    negative = any(sign in before for sign in ("-", "minus", "negative"))
    return Quantity(value * scale * (-1 if negative else 1), money[0] if money else unit)


def interval(text: str) -> Interval | None:
    """The interval that a text is: with brackets, or in words, which is closed."""
    if match := _INTERVAL.fullmatch(text):
        opening, low, high, closing = match.groups()
    elif match := _RANGE.fullmatch(text):
        opening, low, high, closing = "[", match["low"], match["high"], "]"
        # "3 and 5" without "between" is a list.
        if " and " in text and not text.startswith("between "):
            return None
    else:
        return None
    ends = parse(low.strip()), parse(high.strip())
    if ends[0] is None or ends[1] is None:
        return None
    return Interval(opening, ends[0].value, ends[1].value, closing)


def numbers(text: str) -> tuple[fractions.Fraction, ...] | None:
    """The numbers of a list, sorted: at least two, of one unit, with commas, "and" or "or" between them."""
    if text[:1] == "{" and text[-1:] == "}":
        text = text[1:-1]
    found = [parse(part.strip()) for part in re.split(r", (?:and |or )?|,(?![0-9]{3}(?![0-9]))|;| and | or ", text)]
    known = [one for one in found if one is not None]
    if len(found) < 2 or len(known) < len(found) or len({one.unit for one in known} - {""}) > 1:
        return None
    return tuple(sorted(one.value for one in known))


def _same(value: Quantity, gold: Quantity) -> bool:
    if "%" in (value.unit, gold.unit) and value.unit != gold.unit:
        percent, plain = (value, gold) if value.unit == "%" else (gold, value)
        return plain.unit == "" and plain.value in (percent.value, percent.value / 100)
    return value.value == gold.value and (value.unit == gold.unit or "" in (value.unit, gold.unit))


def _cleaned(text: str) -> str:
    """Layout, LaTeX and Markdown taken from around what is said."""
    text = " ".join(text.replace("\u2212", "-").split()).strip("*_` ")
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split())
    for fence in ("$$", "$"):
        if len(text) > 2 * len(fence) and text.startswith(fence) and text.endswith(fence):
            text = text[len(fence) : -len(fence)].strip()
    text = _LEADING_VARIABLE.sub("", text, count=1) if _LEADING_VARIABLE.match(text) else text
    return text.removesuffix(".").strip()


def _number(text: str) -> fractions.Fraction | None:
    """The value of digits, a fraction or a mixed number; None when a denominator is 0."""
    text = text.replace(",", "")
    if "e" in text.casefold():
        exponent = int(text.casefold().partition("e")[2])
        return fractions.Fraction(text) if abs(exponent) <= MAX_EXPONENT else None
    whole, _, part = text.rpartition(" ")
    numerator, _, denominator = part.partition("/")
    if denominator and int(denominator) == 0:
        return None
    return fractions.Fraction(numerator) / int(denominator or 1) + int(whole.strip() or 0)


def _unit(after: str) -> tuple[int, str] | None:
    """(scale, unit) of the words after a number; None when they say something else."""
    if after in _CURRENCIES:
        return 1, _CURRENCIES[after]
    if after == "%":
        return 1, "%"
    words, scale = after.split(), 1
    while words and words[0] in _SCALES:
        scale *= _SCALES[words.pop(0)]
    if len(words) > 3 or any(word.strip(".") in _NO_UNIT for word in words):
        return None
    return scale, " ".join(_UNITS.get(_singular(word), _singular(word)) for word in words)


def _singular(word: str) -> str:
    word = word.strip(".")
    if word in _UNITS or len(word) < 4 or not word.endswith("s") or word.endswith("ss"):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("xes", "ches", "shes", "sses")) else word[:-1]
