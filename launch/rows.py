"""Rows of JSON lines as tokens: what score and generate read, each bad row named by file and line."""

import json
import sys

from thinkfirst.core import files
from thinkfirst.models import chat
from thinkfirst.rl import policy

Row = files.JsonLine


def read(path: str) -> list[Row]:
    """The objects of a JSONL file, or of standard input for "-"."""
    return files.parse_json_lines(sys.stdin.read(), "standard input") if path == "-" else files.read_json_lines(path)


def tokens(row: Row, subject: policy.Policy) -> list[int]:
    """Ids of a row {"tokens"}, checked against the vocabulary."""
    found, size = row.fields["tokens"], subject.model.config.vocab_size
    if not isinstance(found, list):
        raise ValueError(f"{row.place}: tokens must be a list of ids, not {json.dumps(found)[:80]}")
    for position, token in enumerate(found):
        if type(token) is not int or not 0 <= token < size:
            raise ValueError(f"{row.place}: tokens[{position}]={json.dumps(token)} is no id in 0..{size - 1}")
    return found


def text(row: Row, key: str) -> str:
    """The text under `key`."""
    if not isinstance(found := row.fields[key], str):
        raise ValueError(f"{row.place}: {key} must be text, not {json.dumps(found)[:80]}")
    return found


def conversation(row: Row, subject: policy.Policy) -> list[int]:
    """Ids of a row {"messages"}: the turns, and the opening of the model's next one."""
    try:
        return chat.encode(subject.tokenizer, row.fields["messages"], generation=subject.model.config.generation)
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from error


def check_length(row: Row, count: int, subject: policy.Policy) -> None:
    """Raises when a row is longer than the model can tell positions apart."""
    if count > subject.model.config.max_length:
        raise ValueError(f"{row.place}: {count} tokens, the model was made for {subject.model.config.max_length}")


def kind(row: Row, *kinds: str) -> str:
    """Which one of `kinds` the row has."""
    held = [name for name in kinds if name in row.fields]
    if len(held) != 1:
        raise ValueError(f"{row.place}: needs one of {', '.join(kinds)}, has {', '.join(held) or 'none'}")
    return held[0]
