"""HotpotQA (Yang et al., arXiv 1809.09600): questions whose answer takes two paragraphs of Wikipedia.

    hotpot_train_v1.1.json   "context": [[title, [sentence, ...]], ...], "supporting_facts": [[title, number], ...]
    hub                      the same as lists under "title", "sentences" and "sent_id"

The question comes with the paragraphs that support its answer, and without the distractors: those take well over a
thousand tokens.
"""

from typing import Any

from thinkfirst.rl import batch
from thinkfirst.rl.data import rows

LEVELS = ("easy", "medium", "hard")


def read(path: str) -> list[batch.Demonstration]:
    """Problems of the domain span, with the difficulty that the set gives; its test file has no answers."""
    return [batch.Demonstration(_problem(row), "") for row in rows.read(path)]


def _problem(row: rows.Row) -> batch.Problem:
    paragraphs = dict(_pairs(row, "context", "sentences"))
    support = list(dict.fromkeys(title for title, _ in _pairs(row, "supporting_facts", "sent_id")))
    if not support or not all(title in paragraphs for title in support):
        raise row.error("'supporting_facts' must name paragraphs of 'context'", support)
    shown = [f"{title}: {_joined(row, paragraphs[title])}" for title in paragraphs if title in support]
    question = "\n\n".join([*shown, row.text("question").strip()])
    level = row.text("level")
    if level not in LEVELS:
        raise row.error(f"'level' must be one of {', '.join(LEVELS)}", level)
    return batch.Problem(
        id=rows.identity(question),
        question=question,
        answer=row.text("answer").strip(),
        domain="span",
        difficulty=level,
    )


def _pairs(row: rows.Row, name: str, second: str) -> list[tuple[str, Any]]:
    """[[title, x], ...] or {"title": [...], second: [...]} as (title, x) pairs."""
    value = row.fields.get(name)
    if isinstance(value, dict) and isinstance(value.get("title"), list) and isinstance(value.get(second), list):
        pairs = list(map(list, zip(value["title"], value[second], strict=False)))
    else:
        pairs = value if isinstance(value, list) else [None]  # type: ignore[list-item]
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise row.error(f"{name!r} must hold pairs of a title and its {second}", value)
    return [(title, rest) for title, rest in pairs]


def _joined(row: rows.Row, sentences: Any) -> str:
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise row.error("'context' must hold lists of sentences", sentences)
    return " ".join(sentence.strip() for sentence in sentences)
