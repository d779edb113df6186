"""MMLU (Hendrycks et al., arXiv 2009.03300): a question, four options, and a subject.

    subject_test.csv    question, four options, answer; a letter without a header, or a number from 0 under one
    JSONL, hub          {"question", "choices", "answer", "subject" or "type"}
"""

import pathlib
import re

from thinkfirst.rl import batch
from thinkfirst.rl.data import choice, rows

_COLUMNS = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
_FILE = re.compile(r"(\w+)_(test|dev|val|train)")
_SCIENCES = re.compile(
    "anatomy|astronomy|biology|chemistry|computer|electrical|genetics|machine_learning|mathematics|algebra|"
    "medicine|nutrition|physics|statistics|virology|clinical"
)


def read(path: str) -> list[batch.Demonstration]:
    """Problems of the domain science or knowledge; how hard they are, their subject's name tells."""
    return [_demonstration(row) for row in rows.read(path, columns=_COLUMNS)]


def _demonstration(row: rows.Row) -> batch.Demonstration:
    if "choices" in row.fields:
        options = row.texts("choices")
        subject = row.text(row.one_of("subject", "type"))
    else:
        options = tuple(row.text(name) for name in _COLUMNS[1:5])
        named = _FILE.fullmatch(pathlib.Path(row.source).stem)
        if not named:
            raise row.error("the file of a subject is named like abstract_algebra_test.csv", row.source)
        subject = named[1]
    right = choice.place(row, "answer", len(options))
    domain, difficulty = "science" if _SCIENCES.search(subject) else "knowledge", _difficulty(subject)
    return choice.problem(row, row.text("question"), options, right, domain=domain, difficulty=difficulty)


def _difficulty(subject: str) -> str:
    if subject.startswith("elementary_"):
        return "easy"
    return "hard" if subject.startswith(("college_", "professional_", "abstract_")) else "medium"
