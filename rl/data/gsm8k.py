"""GSM8K (Cobbe et al., arXiv 2110.14168): {"question", "answer"} per line, the answer ending in "#### 72"."""

import hashlib
import re

from thinkfirst.core import files
from thinkfirst.rl import batch

_CALCULATOR = re.compile(r"<<[^<>]*>>")


def read(path: str) -> list[batch.Demonstration]:
    """Problems with their worked solutions in our format; difficulty from the number of solution lines."""
    return [_demonstration(place, row) for place, row in files.read_json_lines(path)]


def _demonstration(place: str, row: dict) -> batch.Demonstration:
    question, solution = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(solution, str):
        raise ValueError(f"{place}: GSM8K rows have text under 'question' and 'answer', got {sorted(row)}")
    worked, marker, answer = solution.rpartition("####")
    if not marker or not answer.strip():
        raise ValueError(f"{place}: the answer does not end in '#### number': {solution[-40:]!r}")
    lines = [_CALCULATOR.sub("", line).strip() for line in worked.splitlines() if line.strip()]
    steps = "\n".join(f"Step {number}: {line}" for number, line in enumerate(lines, 1))
    problem = batch.Problem(
        id=hashlib.sha256(question.encode()).hexdigest()[:16],
        question=question,
        answer=answer.strip(),
        difficulty="easy" if len(lines) <= 2 else "medium" if len(lines) <= 4 else "hard",
    )
    return batch.Demonstration(problem, f"<reasoning>{steps}</reasoning><answer>{answer.strip()}</answer>")
