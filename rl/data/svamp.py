"""SVAMP (Patel et al., arXiv 2103.07191): {"Body", "Question", "Equation", "Answer"} per row; answers are numbers."""

import math
import re

from thinkfirst.rl import batch
from thinkfirst.rl.data import rows


def read(path: str) -> list[batch.Demonstration]:
    """Problems without worked solutions; easy ones have at most one operation in their equation."""
    return [batch.Demonstration(_problem(row), "") for row in rows.read(path)]


def _problem(row: rows.Row) -> batch.Problem:
    body, asked = row.text("Body").strip(), row.text("Question").strip()
    question = f"{body} {asked}" if body[-1] in ".?!" else f"{body.rstrip(',')}, {asked[0].lower()}{asked[1:]}"
    operations = re.findall(r"(?<=\s)[-+*/](?=\s)", row.text("Equation"))
    return batch.Problem(
        id=rows.identity(question),
        question=question,
        answer=_number(row),
        difficulty="easy" if len(operations) <= 1 else "medium",
    )


def _number(row: rows.Row) -> str:
    """51.0 is written 51."""
    value = row.fields.get("Answer")
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise row.error("'Answer' must be a number", value)
    return str(int(number)) if number.is_integer() else str(number)
