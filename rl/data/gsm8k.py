"""GSM8K (Cobbe et al., arXiv 2110.14168): {"question", "answer"} per row, the answer ending in "#### 72"."""

import re

from thinkfirst.rl import batch
from thinkfirst.rl.data import rows

_CALCULATOR = re.compile(r"<<[^<>]*>>")


def read(path: str) -> list[batch.Demonstration]:
    """Problems with their worked solutions in our format; difficulty from the number of solution lines."""
    return [_demonstration(row) for row in rows.read(path)]


def _demonstration(row: rows.Row) -> batch.Demonstration:
    question, solution = row.text("question"), row.text("answer")
    worked, marker, answer = solution.rpartition("####")
    if not marker or not answer.strip():
        raise row.error("the answer must end in '#### number'", solution[-40:])
    lines = [_CALCULATOR.sub("", line).strip() for line in worked.splitlines() if line.strip()]
    steps = "\n".join(f"Step {number}: {line}" for number, line in enumerate(lines, 1))
    problem = batch.Problem(
        id=rows.identity(question),
        question=question,
        answer=answer.strip(),
        difficulty="easy" if len(lines) <= 2 else "medium" if len(lines) <= 4 else "hard",
    )
    return batch.Demonstration(problem, f"<reasoning>{steps}</reasoning><answer>{answer.strip()}</answer>")
