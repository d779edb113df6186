"""What a prompt asks of the form of a text, as far as it can be read from the prompt without doubt.

Lengths: "at most 50 words", "exactly three sentences", "a 100-word story", "in 2 paragraphs", "between 20 and 30
words", of words, sentences, lines, paragraphs and bullet points.  Words: "include the word 'lighthouse'", "do not use
the words 'very' and 'really'", in quotes.  Anything else that a prompt asks is a matter for a judge.
"""

import re
from collections.abc import Callable, Iterator

# "100 words" is asked of a writer, not of a scale.
TOLERANCE = 0.1
# How far before a verb, in characters, what denies it may stand.
CLAUSE = 40

_SMALL = "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
_COUNT = rf"([0-9]{{1,4}}|{'|'.join(_SMALL)})"
_THING = r"(word|sentence|line|paragraph|bullet point|bullet)s?"
_BETWEEN = re.compile(rf"\b(?:between )?{_COUNT}(?: and | to | ?- ?){_COUNT}[ -]{_THING}\b")
_QUOTE = r"[\"'`\u201c\u2018]"
_LENGTH = re.compile(
    r"\b(at most|no more than|not more than|up to|under|fewer than|less than|at least|no fewer than|no less than"
    rf"|more than|over|exactly|about|around|approximately|in|of|a|an)? ?\b{_COUNT}[ -]{_THING}\b(?!:? ?{_QUOTE})"
)
_WORDS = re.compile(
    r"\b(include|includes|including|use|uses|using|mention|mentions|mentioning|contain|contains|containing|avoid|avoids"
    rf"|avoiding)(?: the)?(?: following)?(?: {_COUNT})?(?: words?| phrases?| terms?)?:? "
    r"((?:[\"'`\u201c\u2018][^\"'`\u201c\u201d\u2019\n]{1,40}[\"'`\u201d\u2019](?:, and |, or |, | and | or )?)+)",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\b(?:not|don't|never|without|avoid|cannot|no)\b", re.IGNORECASE)
_QUOTED = re.compile(r"[\"'`\u201c\u2018]([^\"'`\u201c\u201d\u2019\n]{1,40})[\"'`\u201d\u2019]")

Check = Callable[[str], bool]


def score(text: str, prompt: str) -> float | None:
    """Share of the prompt's constraints that the text keeps; None when none is found in the prompt."""
    checks = list(read(prompt))
    return sum(check(text) for check in checks) / len(checks) if checks else None


def read(prompt: str) -> Iterator[Check]:
    """A check for every constraint."""
    prompt = " ".join(prompt.split())
    lowered = prompt.lower()
    for match in _BETWEEN.finditer(lowered):
        yield _within(match[3], _count(match[1]), _count(match[2]))
    for match in _LENGTH.finditer(_BETWEEN.sub("", lowered)):
        yield _length(match[1] or "", _count(match[2]), match[3])
    for match in _WORDS.finditer(prompt):
        clause = re.split(r"[.!?;,:]", prompt[max(0, match.start() - CLAUSE) : match.start()])[-1]
        denied = match[1].lower().startswith("avoid") or bool(_DENIED.search(clause))
        for word in _QUOTED.findall(match[3]):
            yield _holds(word, wanted=not denied)


def asks_for_length(prompt: str) -> bool:
    """Whether the prompt itself says how long the text is to be."""
    lowered = " ".join(prompt.lower().split())
    return bool(_BETWEEN.search(lowered) or _LENGTH.search(lowered))


def _length(how: str, count: int, thing: str) -> Check:
    """The check of one length: a limit as it stands, a bare number with some tolerance where it counts words."""
    if how in ("at most", "no more than", "not more than", "up to"):
        return _within(thing, 1, count)
    if how in ("under", "fewer than", "less than"):
        return _within(thing, 1, count - 1)
    if how in ("at least", "no fewer than", "no less than"):
        return _within(thing, count, None)
    if how in ("more than", "over"):
        return _within(thing, count + 1, None)
    slack = int(count * TOLERANCE) if thing == "word" and how != "exactly" else 0
    return _within(thing, count - slack, count + slack)


def _within(thing: str, low: int, high: int | None) -> Check:
    return lambda text: low <= _number_of(thing, text) and (high is None or _number_of(thing, text) <= high)


def _holds(word: str, *, wanted: bool) -> Check:
    pattern = re.compile(rf"(?<!\w){re.escape(word.strip('.,').casefold())}(?!\w)")
    return lambda text: bool(pattern.search(" ".join(text.casefold().split()))) == wanted


def _number_of(thing: str, text: str) -> int:
    """How many words, sentences, lines, paragraphs or bullet points a text has."""
    lines = [line.strip() for line in text.splitlines()]
    if thing == "word":
        return len(text.split())
    if thing == "sentence":
        return len([part for part in re.split(r"[.!?]+[\"')\u201d]*(?:\s+|$)", text) if re.search(r"\w", part)])
    if thing == "line":
        return sum(bool(line) for line in lines)
    if thing == "paragraph":
        return len([part for part in re.split(r"\n[ \t]*\n", text) if part.strip()])
    return sum(bool(re.match(r"(?:[-*\u2022]|[0-9]{1,2}[.)]) *\S", line)) for line in lines)


def _count(text: str) -> int:
    return int(text) if text[0] in "0123456789" else _SMALL.index(text)
