"""SAMSum (Gliwa et al., arXiv 1911.12237): {"dialogue", "summary"} per row, a chat in a few sentences."""

from thinkfirst.rl import batch
from thinkfirst.rl.data import rows


def read(path: str) -> list[batch.Demonstration]:
    """Problems of the domain dialogue; `answer` is the summary that an annotator wrote."""
    return [batch.Demonstration(_problem(row), "") for row in rows.read(path)]


def _problem(row: rows.Row) -> batch.Problem:
    dialogue = row.text("dialogue").replace("\r\n", "\n").strip()
    question = f"Summarise this conversation in a few sentences.\n\n{dialogue}"
    return batch.Problem(rows.identity(question), question, row.text("summary").strip(), domain="dialogue")
