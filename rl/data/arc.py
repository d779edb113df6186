"""ARC (Clark et al., arXiv 1803.05457), the easy and the challenge set: school science with three to five options.

    ARC-Easy-Train.jsonl   {"question": {"stem", "choices": [{"text", "label"}, ...]}, "answerKey"}
    hub                    {"question", "choices": {"text": [...], "label": [...]}, "answerKey"}

Labels are A to E, or 1 to 5.
"""

from typing import Any

from thinkfirst.rl import batch
from thinkfirst.rl.data import choice, rows


def read(path: str) -> list[batch.Demonstration]:
    """Problems of the domain science: hard ones are those of the challenge set, as the name of file or split says."""
    return [_demonstration(row) for row in rows.read(path)]


def _demonstration(row: rows.Row) -> batch.Demonstration:
    asked = row.fields.get("question")
    stem, choices = (asked.get("stem"), asked.get("choices")) if isinstance(asked, dict) else (asked, None)
    if not isinstance(stem, str) or not stem.strip():
        raise row.error("'question' must be text, or hold text under 'stem'", asked)
    labels, options = _options(row, row.fields.get("choices") if choices is None else choices)
    key = row.text("answerKey").strip()
    if labels.count(key) != 1:
        raise row.error(f"'answerKey' must be one of {', '.join(labels)}", key)
    name = row.source.rsplit("/", 2)[-1].lower()
    difficulty = "hard" if "challenge" in name else "easy" if "easy" in name else "medium"
    return choice.problem(row, stem, options, labels.index(key), domain="science", difficulty=difficulty)


def _options(row: rows.Row, choices: Any) -> tuple[list[str], list[str]]:
    """(labels, texts)."""
    if isinstance(choices, list) and all(isinstance(option, dict) for option in choices):
        labels, texts = [[option.get(name) for option in choices] for name in ("label", "text")]
    elif isinstance(choices, dict):
        labels, texts = choices.get("label"), choices.get("text")  # type: ignore[assignment]
    else:
        raise row.error("'choices' must be options with 'label' and 'text'", choices)
    for found in (labels, texts):
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise row.error("'choices' must hold texts under 'label' and 'text'", choices)
    if len(labels) != len(texts):
        raise row.error("'choices' must have as many labels as texts", choices)
    return labels, texts
