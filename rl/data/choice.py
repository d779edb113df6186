"""Multiple choice: the options stand under the question, one a line as `B) text`, and the answer is a letter."""

from collections.abc import Sequence

from thinkfirst.rl import batch
from thinkfirst.rl.data import rows

LETTERS = "ABCDEFGHIJ"


def problem(
    row: rows.Row, stem: str, options: Sequence[str], right: int, *, domain: str, difficulty: str = "medium"
) -> batch.Demonstration:
    """The problem whose answer is the letter of option `right`."""
    texts = tuple(option.strip() for option in options)
    if not 2 <= len(texts) <= len(LETTERS) or not all(texts):
        raise row.error(f"needs 2 to {len(LETTERS)} options, none of them blank", list(options))
    asked = question(stem, texts)
    found = batch.Problem(
        id=rows.identity(asked),
        question=asked,
        answer=LETTERS[right],
        domain=domain,
        choices=texts,
        difficulty=difficulty,
    )
    return batch.Demonstration(found, "")


def question(stem: str, options: Sequence[str]) -> str:
    """The question with its options under it."""
    return "\n".join([stem.strip(), *(f"{letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))])


def place(row: rows.Row, name: str, count: int) -> int:
    """Which of `count` options the field means: a number from 0, or a letter."""
    value = row.fields.get(name)
    if isinstance(value, str):
        text = value.strip().upper()
        known = {**{str(number): number for number in range(count)}, **{LETTERS[n]: n for n in range(count)}}
        found = known.get(text, -1)
    else:
        found = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if not 0 <= found < count:
        raise row.error(f"{name!r} must be a number in 0..{count - 1} or a letter in A..{LETTERS[count - 1]}", value)
    return found
