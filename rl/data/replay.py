"""Replay: verified traces of domains learnt before, so that a later stage does not forget them.

JSONL rows as `jsonl.py` reads them, of which each must name its domain and have a completion.
"""

from thinkfirst.rl import batch
from thinkfirst.rl.data import jsonl, rows


def read(path: str) -> list[batch.Demonstration]:
    """Problems with the traces to imitate."""
    return _checked(rows.read(path))


def parse(content: str, name: str) -> list[batch.Demonstration]:
    """The same of JSON lines that came from `name`."""
    return _checked(rows.json_lines(content, name))


def _checked(found: list[rows.Row]) -> list[batch.Demonstration]:
    for row in found:
        row.text("domain")
        row.text("completion")
    return [jsonl.demonstration(row) for row in found]
