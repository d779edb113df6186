"""Any JSONL with {question, answer} and optionally domain, choices, difficulty, tests, completion."""

import hashlib
from typing import Any

from thinkfirst.core import files
from thinkfirst.rl import batch

_OPTIONAL: dict[str, type] = {"domain": str, "difficulty": str, "choices": list, "tests": list, "completion": str}


def read(path: str) -> list[batch.Demonstration]:
    """Problems of a file; `completion`, where a row has one, is a solution to imitate."""
    return [_demonstration(place, row) for place, row in files.read_json_lines(path)]


def _demonstration(place: str, row: dict[str, Any]) -> batch.Demonstration:
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(f"{place}: {name!r} must be text, got {row.get(name)!r}")
    for name, kind in _OPTIONAL.items():
        if name in row and not isinstance(row[name], kind):
            raise ValueError(f"{place}: {name!r} must be a {kind.__name__}, got {row[name]!r}")
    problem = batch.Problem(
        id=hashlib.sha256(row["question"].encode()).hexdigest()[:16],
        question=row["question"],
        answer=row["answer"],
        domain=row.get("domain", "math"),
        choices=tuple(row.get("choices", ())),
        difficulty=row.get("difficulty", "medium"),
        tests=tuple(row.get("tests", ())),
    )
    return batch.Demonstration(problem, row.get("completion", ""))
