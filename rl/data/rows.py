"""Rows of a published data set: a file, a folder of files, or a split on the Hugging Face hub.

    path                                  rows
    FILE.jsonl, .json, .csv, .parquet     objects of JSON lines or of a JSON array, lines of a table
    FILE.jsonl.gz, .json.gz, .csv.gz      the same, packed; a file of any other name holds JSON too
    FOLDER                                those of every such file in it, by name
    hf:OWNER/NAME[/CONFIG]#SPLIT          those of a split on the hub (needs the extra `hf`)

Every row knows its place, and every error names it: "file:line", for arrays and tables with the number of the row.
"""

import csv
import gzip
import hashlib
import io
import json
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from thinkfirst.core import files

HUB = "hf:"
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Row(NamedTuple):
    """The fields of a row, where it stands, and the file or hub name that it is from."""

    place: str
    fields: dict[str, Any]
    source: str

    def text(self, name: str) -> str:
        """The field as text, which must not be blank."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{name!r} must be text", value)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """The field as a list of texts."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"{name!r} must be a list of texts", value)
        return tuple(value)

    def one_of(self, *names: str) -> str:
        """The first of the names that is a field."""
        for name in names:
            if name in self.fields:
                return name
        raise self.error(f"needs a field {' or '.join(map(repr, names))}", sorted(self.fields))

    def error(self, expected: str, value: object) -> ValueError:
        """What is wrong, where, and with which value."""
        shown = repr(value)
        return ValueError(f"{self.place}: {expected}, got {shown if len(shown) <= 120 else shown[:120] + '...'}")


def identity(question: str) -> str:
    """The id of a problem: sixteen hexadecimal digits of its question."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def read(path: str, *, columns: Sequence[str] = ()) -> list[Row]:
    """All rows of `path`; `columns` name those of a CSV file that comes without a header."""
    if path.startswith(HUB):
        return _hub(path)
    found = pathlib.Path(path)
    if not found.is_dir():
        return _file(found, columns)
    members = sorted(file for file in found.iterdir() if _kind(file) in SUFFIXES)
    if not members:
        raise ValueError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
    return [row for file in members for row in _file(file, columns)]


def text_of(path: pathlib.Path) -> str:
    """The text of a file that may be packed; ValueError names the first byte that is no UTF-8."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}: {error.reason}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from error


def json_lines(content: str, name: str) -> list[Row]:
    """The objects of JSON lines that came from `name`."""
    return [Row(place, fields, name) for place, fields in files.parse_json_lines(content, name)]


def _kind(path: pathlib.Path) -> str:
    """The suffix that tells the format."""
    return pathlib.Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _file(path: pathlib.Path, columns: Sequence[str]) -> list[Row]:
    kind = _kind(path)
    if kind == ".parquet":
        return _parquet(path)
    content = text_of(path)
    if kind == ".csv":
        return list(_csv(content, str(path), columns))
    if kind != ".jsonl" and content.lstrip().startswith("["):
        return list(_json_array(content, str(path)))
    return json_lines(content, str(path))


def _json_array(content: str, name: str) -> Iterator[Row]:
    """The objects of an array, each with the line it begins on."""
    decoder, line, counted = json.JSONDecoder(), 1, 0
    at, number = _past_blanks(content, content.index("[") + 1), 0
    while content[at : at + 1] != "]":
        line, counted = line + content.count("\n", counted, at), at
        place = f"{name}:{line} (row {number})"
        try:
            fields, end = decoder.raw_decode(content, at)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{place}: not JSON: {error}: {content[at : at + 80]!r}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{place}: not a JSON object: {content[at:end][:80]!r}")
        yield Row(place, fields, name)
        at, number = _past_blanks(content, end), number + 1
        if content[at : at + 1] == ",":
            at = _past_blanks(content, at + 1)
        elif content[at : at + 1] != "]":
            raise ValueError(f"{place}: neither ',' nor ']' after the row: {content[at : at + 80]!r}")


def _past_blanks(content: str, at: int) -> int:
    while content[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def _csv(content: str, name: str, columns: Sequence[str]) -> Iterator[Row]:
    """The lines of a table; the first is its header, unless `columns` are known and it does not begin like them."""
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    header: Sequence[str] = ()
    begins, number = 1, 0
    try:
        for cells in reader:
            place, begins = f"{name}:{begins} (row {number})", reader.line_num + 1
            if not header and not (columns and cells and cells[0].strip().lower() != columns[0]):
                header = [cell.strip() for cell in cells]
                continue
            header = header or columns
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(f"{place}: {len(cells)} cells under {len(header)} columns: {str(cells)[:120]}")
            yield Row(place, dict(zip(header, cells, strict=True)), name)
            number += 1
    except csv.Error as error:
        raise ValueError(f"{name}:{begins}: not CSV: {error}") from error


def _parquet(path: pathlib.Path) -> list[Row]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: Parquet is read with pyarrow: pip install 'thinkfirst[hf]'") from error
    try:
        table = pyarrow.parquet.read_table(str(path)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not Parquet: {error}") from error
    return [Row(f"{path} (row {number})", fields, str(path)) for number, fields in enumerate(table)]


def _hub(path: str) -> list[Row]:
    name, marker, split = path.removeprefix(HUB).partition("#")
    owner, *rest = name.split("/")
    if not marker or not split or not owner or len(rest) not in (1, 2) or not all(rest):
        raise ValueError(f"{path}: a hub name is hf:OWNER/NAME#SPLIT or hf:OWNER/NAME/CONFIG#SPLIT")
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{path}: the hub is read with datasets: pip install 'thinkfirst[hf]'") from error
    try:
        loaded = datasets.load_dataset(f"{owner}/{rest[0]}", *rest[1:], split=split)
    except (OSError, ValueError) as error:  # no network, no such set, configuration or split
        raise ValueError(f"{path}: {error}") from error
    return [Row(f"{path} (row {number})", dict(fields), path) for number, fields in enumerate(loaded)]
