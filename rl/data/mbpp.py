"""MBPP (Austin et al., arXiv 2108.07732), full and sanitized: a task in a sentence, and the asserts that judge it.

    full        {"task_id", "text", "test_list", "test_setup_code", ...}
    sanitized   {"task_id", "prompt", "test_list", "test_imports", ...}

Both are published as one file; `FILE#train` takes one of the paper's splits of it, by task id (section 2.1).
"""

from thinkfirst.rl import batch
from thinkfirst.rl.data import jsonl, rows

SPLITS = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}


def read(path: str) -> list[batch.Demonstration]:
    """Programs to write.  The first assert is shown, as it names the function; `tests` are all, after their setup."""
    if path.startswith(rows.HUB):
        return [_demonstration(row) for row in rows.read(path)]
    file, marker, split = path.partition("#")
    if marker and split not in SPLITS:
        raise ValueError(f"{path}: MBPP has the splits {', '.join(SPLITS)}, not {split!r}")
    found = rows.read(file)
    return [_demonstration(row) for row in found if not marker or _task(row) in SPLITS[split]]


def _task(row: rows.Row) -> int:
    value = row.fields.get("task_id")
    if not isinstance(value, int) or isinstance(value, bool):
        raise row.error("'task_id' must be a whole number", value)
    return value


def _demonstration(row: rows.Row) -> batch.Demonstration:
    text = row.text(row.one_of("text", "prompt")).strip()
    asserts = [test.strip() for test in row.texts("test_list")]
    if not asserts or not all(test.startswith("assert") for test in asserts):
        raise row.error("'test_list' must hold assert statements", asserts)
    setup = _setup(row)
    question = f"{text}\nIt is tested like this:\n{asserts[0]}"
    found = batch.Problem(
        id=rows.identity(question),
        question=question,
        answer="",
        domain="code",
        tests=jsonl.checked(row, (setup, *asserts) if setup else tuple(asserts)),
    )
    return batch.Demonstration(found, "")


def _setup(row: rows.Row) -> str:
    """What runs after the solution and before the asserts."""
    if row.one_of("test_imports", "test_setup_code") == "test_imports":
        return "\n".join(row.texts("test_imports"))
    value = row.fields["test_setup_code"]
    if not isinstance(value, str):
        raise row.error("'test_setup_code' must be text", value)
    return value.replace("\r\n", "\n").strip()
