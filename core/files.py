"""Files written whole or not at all, and JSON lines read with the line that is wrong named."""

import json
import os
import pathlib
from typing import Any


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Replaces `path` by `content` in one step: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, content: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, content.encode())


def read_json_lines(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; ValueError names the file and line of the first that is not an object."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error.msg}: {line[:80]!r}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: not a JSON object: {line[:80]!r}")
        rows.append(row)
    return rows
