"""ReClor (Yu et al., arXiv 2002.04326): {"context", "question", "answers", "label"} per row; label counts from 0."""

from thinkfirst.rl import batch
from thinkfirst.rl.data import choice, rows


def read(path: str) -> list[batch.Demonstration]:
    """Problems of the domain logic; the published test file has no labels and is refused."""
    return [_demonstration(row) for row in rows.read(path)]


def _demonstration(row: rows.Row) -> batch.Demonstration:
    options = row.texts("answers")
    stem = f"{row.text('context').strip()}\n\n{row.text('question').strip()}"
    return choice.problem(row, stem, options, choice.place(row, "label", len(options)), domain="logic")
