"""Prompts for creative writing: rows with "prompt" or "question", or a text file with one prompt a line.

The lines of WritingPrompts (Fan et al., arXiv 1805.04833; train.wp_source) are premises: they are asked to become a
story, without their tag ("[ WP ]") and with their line breaks ("<newline>").
"""

import pathlib
import re

from thinkfirst.rl import batch
from thinkfirst.rl.data import rows

_TAG = re.compile(r"\[\s*[A-Za-z]{2}\s*\]\s*")


def read(path: str) -> list[batch.Demonstration]:
    """Problems of the domain creative, without an answer."""
    if path.startswith(rows.HUB) or not path.endswith((".txt", ".wp_source")):
        found = [row.text(row.one_of("prompt", "question")).strip() for row in rows.read(path)]
    else:
        lines = rows.text_of(pathlib.Path(path)).split("\n")
        found = [_asked(line.strip()) for line in lines if line.strip()]
    return [batch.Demonstration(batch.Problem(rows.identity(text), text, "", domain="creative"), "") for text in found]


def _asked(line: str) -> str:
    if not (tag := _TAG.match(line)):
        return line
    premise = re.sub(r"\s*<newline>\s*", "\n", line[tag.end() :]).strip()
    return f"Write a short story from this premise.\n\n{premise}"
