"""The one reading of a completion that every reward shares: `<reasoning>Step 1: ...</reasoning><answer>...</answer>`.

Well formed means the whole text is exactly that: each of the four tags once and in order, a little whitespace and
nothing else outside them, something inside both, and a stop token at the end (a truncated text never is).  Tags are
found by counting and searching, headings by a pattern that cannot backtrack: the time is linear in the text.
"""

import dataclasses
import re

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import answers

REASONING_TAG = "reasoning"
ANSWER_TAG = "answer"

# Whitespace is layout up to here; beyond, it is a place to spend tokens where verbosity does not look.
MAX_PADDING = 16

_HEADING = re.compile(r"(?<!\w)Step ([1-9][0-9]{0,3}):")


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What a completion says, and the first thing wrong with how it says it.

    `fault` is "" when well formed, else "truncated", "tags" (one missing or repeated), "order", "stray text",
    "padding", "empty reasoning" or "empty answer".  The other fields are filled whenever the four tags stand once and
    in order, so that a report can show them; rewards read the answer through `strict_answer` only.

    `reasoning` and `answer` are stripped.  `reasoning_span` is everything between its tags, the whitespace included
    (it costs tokens); `answer_span` is the stripped answer alone (it is what the policy committed to).
    """

    fault: str
    reasoning: str | None = None
    answer: str | None = None
    reasoning_span: tuple[int, int] = (0, 0)
    answer_span: tuple[int, int] = (0, 0)
    steps: tuple[str, ...] = ()
    step_numbers: tuple[int, ...] = ()

    @property
    def well_formed(self) -> bool:
        return self.fault == ""


def parse(completion: batch.Completion, *, reasoning_tag: str = REASONING_TAG, answer_tag: str = ANSWER_TAG) -> Parsed:
    """The parts of a completion, with the first fault of its format."""
    text = completion.text
    tags = (f"<{reasoning_tag}>", f"</{reasoning_tag}>", f"<{answer_tag}>", f"</{answer_tag}>")
    if any(text.count(tag) != 1 for tag in tags):
        return Parsed("tags" if completion.stopped else "truncated")
    begins = [text.find(tag) for tag in tags]
    if begins != sorted(begins):
        return Parsed("order" if completion.stopped else "truncated")
    ends = [begin + len(tag) for begin, tag in zip(begins, tags, strict=True)]

    reasoning = text[ends[0] : begins[1]]
    inside = text[ends[2] : begins[3]]
    outside = (text[: begins[0]], text[ends[1] : begins[2]], text[ends[3] :])
    answer = inside.strip()
    answer_begin = ends[2] + len(inside) - len(inside.lstrip())
    numbers, steps = _numbered_steps(reasoning)
    return Parsed(
        fault=_fault(completion.stopped, reasoning, inside, outside),
        reasoning=reasoning.strip(),
        answer=answer,
        reasoning_span=(ends[0], begins[1]),
        answer_span=(answer_begin, answer_begin + len(answer)),
        steps=steps,
        step_numbers=numbers,
    )


def strict_answer(parsed: Parsed) -> str | None:
    """The answer of a well-formed completion, else None: the only answer a reward may look at."""
    return parsed.answer if parsed.well_formed else None


def lenient_answer(text: str, *, answer_tag: str = ANSWER_TAG) -> str | None:
    """The last complete answer block, else the last number, else None.  For evaluation, never for a reward.

    Beside the strict score it tells "cannot solve" from "cannot format"; paid for, it would teach ignoring the format.
    """
    opening, closing = f"<{answer_tag}>", f"</{answer_tag}>"
    begin = text.rfind(opening, 0, max(0, text.rfind(closing)))
    if begin >= 0:
        begin += len(opening)
        return text[begin : text.find(closing, begin)].strip()
    numbers = answers.numbers(text)
    return numbers[-1] if numbers else None


def tokens_in(completion: batch.Completion, span: tuple[int, int]) -> list[int]:
    """Indices of the tokens that wrote at least one character of `span`.

    A token that wrote nothing (a piece of a character that a later token completes) stands for the character after it.
    """
    begin, end = span
    return [i for i, (first, last) in enumerate(completion.spans) if first < end and max(last, first + 1) > begin]


def _fault(stopped: bool, reasoning: str, inside: str, outside: tuple[str, ...]) -> str:
    if not stopped:
        return "truncated"
    if any(gap.strip() for gap in outside):
        return "stray text"
    if not reasoning.strip():
        return "empty reasoning"
    if not inside.strip():
        return "empty answer"
    if max(map(len, outside)) > MAX_PADDING or len(inside) - len(inside.strip()) > MAX_PADDING:
        return "padding"
    return ""


def _numbered_steps(reasoning: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Numbers and stripped bodies of the `Step k:` headings; text before the first heading belongs to no step."""
    headings = list(_HEADING.finditer(reasoning))
    begins = [heading.end() for heading in headings]
    ends = [heading.start() for heading in headings[1:]] + [len(reasoning)]
    bodies = tuple(reasoning[begin:end].strip() for begin, end in zip(begins, ends, strict=False))
    return tuple(int(heading[1]) for heading in headings), bodies
