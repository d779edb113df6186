"""LogiQA (Liu et al., arXiv 2007.08124) and LogiQA 2.0 (Liu et al., 2023): an argument, a question, four options.

    1.0   Train.txt: blocks of a letter, the context, the question, and four options as "A.text"; a blank line between
    2.0   train.txt: JSON lines {"text", "question", "options", "answer"}; answer counts from 0
    hub   {"context", "query" or "question", "options", "correct_option" or "label" or "answer"}
"""

import pathlib
import re

from thinkfirst.rl import batch
from thinkfirst.rl.data import choice, rows

_OPTION = re.compile(r"\s*([A-Da-d])\s*[.)]\s*(.*)")


def read(path: str) -> list[batch.Demonstration]:
    """Problems of the domain logic."""
    return [_demonstration(row) for row in _rows(path)]


def _rows(path: str) -> list[rows.Row]:
    if path.startswith(rows.HUB) or not path.endswith(".txt"):
        return rows.read(path)
    content = rows.text_of(pathlib.Path(path))
    return rows.json_lines(content, path) if content.lstrip().startswith("{") else _blocks(content, path)


def _blocks(content: str, path: str) -> list[rows.Row]:
    found = []
    block: list[str] = []
    for number, line in enumerate([*content.split("\n"), ""], 1):
        if line.strip():
            block.append(line.strip())
        elif block:
            found.append(_block(block, f"{path}:{number - len(block)}", path))
            block = []
    return found


def _block(block: list[str], place: str, path: str) -> rows.Row:
    if len(block) != 7:
        raise ValueError(f"{place}: a block has 7 lines, this one {len(block)}: {block[0][:80]!r}")
    letter, context, question, *lines = block
    options = [_OPTION.fullmatch(line) for line in lines]
    if [match and match[1].upper() for match in options] != ["A", "B", "C", "D"]:
        raise ValueError(f"{place}: the options must begin with A. to D., got {lines!r}")
    texts = [match[2] for match in options if match]
    return rows.Row(place, {"context": context, "question": question, "options": texts, "answer": letter}, path)


def _demonstration(row: rows.Row) -> batch.Demonstration:
    options = row.texts("options")
    context, question = row.text(row.one_of("context", "text")), row.text(row.one_of("question", "query"))
    right = choice.place(row, row.one_of("answer", "correct_option", "label"), len(options))
    return choice.problem(row, f"{context.strip()}\n\n{question.strip()}", options, right, domain="logic")
