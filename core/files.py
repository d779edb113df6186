"""Files written whole or not at all, and JSON lines read with the line that is wrong named."""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


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


@contextmanager
def new_folder(path: pathlib.Path, *, replaces: str = "config.json") -> Iterator[pathlib.Path]:
    """A place, not there yet, to build a folder at; it becomes `path` when the block ends without an error.

    A folder that is at `path` already gives way only if it is empty or holds a file named `replaces`.
    """
    path = path.absolute()
    if path.exists() and not (path.is_dir() and ((path / replaces).is_file() or not any(path.iterdir()))):
        raise ValueError(f"{path}: is there already and is no folder with {replaces}: it is not replaced")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class JsonLine(NamedTuple):
    """An object of a JSONL file and where it stands, as "file:line"."""

    place: str
    fields: dict[str, Any]


def read_json_lines(path: str | pathlib.Path) -> list[JsonLine]:
    """The objects of a JSONL file; ValueError names the file and line of the first that is not an object."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return parse_json_lines(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}: {error.reason}") from error


def parse_json_lines(content: str, name: str) -> list[JsonLine]:
    """The objects of JSONL text that came from `name`; blank lines are passed over."""
    rows = []
    for number, line in enumerate(content.split("\n"), 1):  # splitlines would also cut inside strings, at U+2028
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            fields = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{place}: not JSON: {error}: {line[:80]!r}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{place}: not a JSON object: {line[:80]!r}")
        rows.append(JsonLine(place, fields))
    return rows


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """JSONL text of `rows`."""
    return "".join(json.dumps(row) + "\n" for row in rows)
