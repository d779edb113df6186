"""XSum (Narayan et al., arXiv 1808.08745): {"document", "summary"} per row, a BBC article in one sentence."""

from thinkfirst.rl import batch
from thinkfirst.rl.data import rows


def read(path: str) -> list[batch.Demonstration]:
    """Problems of the domain summary; `answer` is the sentence that introduced the article."""
    return [batch.Demonstration(_problem(row), "") for row in rows.read(path)]


def _problem(row: rows.Row) -> batch.Problem:
    question = f"Summarise this article in one sentence.\n\n{row.text('document').strip()}"
    return batch.Problem(rows.identity(question), question, row.text("summary").strip(), domain="summary")
