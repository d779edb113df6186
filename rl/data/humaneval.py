"""HumanEval (Chen et al., arXiv 2107.03374): a signature and a docstring to complete, and a function that checks it."""

from thinkfirst.rl import batch
from thinkfirst.rl.data import jsonl, rows
from thinkfirst.rl.rewards import hidden_tests


def read(path: str) -> list[batch.Demonstration]:
    """Functions to write; the one test of each brings the imports and helpers that its prompt came with."""
    return [_demonstration(row) for row in rows.read(path)]


def _demonstration(row: rows.Row) -> batch.Demonstration:
    prompt, name = row.text("prompt"), row.text("entry_point")
    if f"def {name}(" not in prompt:
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
        tests=jsonl.checked(row, _tests(row, prompt, test, name)),
    )
    return batch.Demonstration(found, "")


def _tests(row: rows.Row, prompt: str, test: str, name: str) -> tuple[str, ...]:
    try:
        return hidden_tests.humaneval(prompt, test, name)
    except ValueError as error:
        raise row.error(f"'prompt' must be Python ({error})", prompt) from error
