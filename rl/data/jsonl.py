"""Any rows with {question, answer} and optionally domain, choices, difficulty, tests, completion.

`question` is shown as it is, so it must list its own options.  `answer` may be left out where there are tests, and in
the open domains.
"""

from typing import Any

from thinkfirst.rl import batch
from thinkfirst.rl.data import choice, domains, rows
from thinkfirst.rl.rewards import hidden_tests


def read(path: str) -> list[batch.Demonstration]:
    """Problems of a file; `completion`, where a row has one, is a solution to imitate."""
    return [demonstration(row) for row in rows.read(path)]


def demonstration(row: rows.Row) -> batch.Demonstration:
    """The problem of a row, and its completion."""
    question, domain = row.text("question"), _text(row, "domain", "math")
    tests, choices = _texts(row, "tests"), _texts(row, "choices")
    needless = tests or domain in domains.OPEN
    answer = _text(row, "answer", "") if needless else row.text("answer")
    if tests:
        checked(row, tests)
    if choices and answer not in (*choices, *choice.LETTERS[: len(choices)]):
        raise row.error(f"'answer' must be one of the choices or the letter of one: {list(choices)}", answer)
    problem = batch.Problem(
        id=rows.identity(question),
        question=question,
        answer=answer,
        domain=domain,
        choices=choices,
        difficulty=_text(row, "difficulty", "medium"),
        tests=tests,
    )
    return batch.Demonstration(problem, _text(row, "completion", ""))


def checked(row: rows.Row, tests: tuple[str, ...]) -> tuple[str, ...]:
    """The hidden tests, if a program can be judged by them."""
    try:
        hidden_tests.parse(tests)
    except ValueError as error:
        raise row.error(f"'tests' must be Python asserts ({error})", tests) from error
    return tests


def _text(row: rows.Row, name: str, default: str) -> str:
    """The field, or `default` where there is none: in a table an empty cell is none."""
    value: Any = row.fields.get(name)
    if value is not None and not isinstance(value, str):
        raise row.error(f"{name!r} must be text", value)
    return default if value is None else value


def _texts(row: rows.Row, name: str) -> tuple[str, ...]:
    return () if row.fields.get(name) is None else row.texts(name)
