"""HumanEval (Chen et al., arXiv 2107.03374): a signature and a docstring to complete, and a function that checks it."""

from thinkfirst.rl import batch
from thinkfirst.rl.data import rows


def read(path: str) -> list[batch.Demonstration]:
    """Functions to write; the one test of each brings the imports and helpers that its prompt came with."""
    return [_demonstration(row) for row in rows.read(path)]


def _demonstration(row: rows.Row) -> batch.Demonstration:
    prompt, name = row.text("prompt"), row.text("entry_point")
    given, marker, _ = prompt.rpartition(f"def {name}(")
    if not marker:
        raise row.error(f"'prompt' must define {name!r}", prompt)
    test = row.text("test")
    if "def check(" not in test:
        raise row.error("'test' must define 'check'", test)
    question = f"Complete this Python function. Answer with the whole function and the imports it needs.\n\n{prompt}"
    found = batch.Problem(
        id=rows.identity(question),
        question=question,
        answer="",
        domain="code",
        tests=(f"{given}{test.strip()}\n\ncheck({name})\n",),
    )
    return batch.Demonstration(found, "")
