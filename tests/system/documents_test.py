"""What the documents say can be done: every link leads somewhere, every command and every setting in them is known."""

import functools
import importlib
import re
import shlex

import pytest
from absl import flags

from house import source
from thinkfirst.core import config
from thinkfirst.launch import recipes
from thinkfirst.rl import batch
from thinkfirst.rl.rewards import user_worker

DOCUMENTS = [source.ROOT / name for name in ("README.md", "AGENTS.md")] + sorted((source.ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
PROGRAM = re.compile(r"(?:thinkfirst-(\w+)|(?:\S*python3? )-m thinkfirst\.launch\.(\w+))(?= |$)")
OPEN = ("...", "NAME")  # the reader is to put something there


def anchors(text):
    """What `#...` may name: the headings, as GitHub writes them."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(document, text):
    """The links of a document that lead nowhere; addresses of the web are not followed."""
    found = []
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = document.parent / path if path else document
        if not file.exists() or (anchor and anchor not in anchors(file.read_text() if path else text)):
            found.append(link)
    return found


def commands(text):
    """Every call of a program of ours or of make: lines of indented and fenced blocks, and code between backticks."""
    joined = re.sub(r" *\\\n *", " ", text)
    blocks = re.findall(r"^    (.+)$", joined, re.MULTILINE)
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", joined, re.MULTILINE | re.DOTALL)).splitlines()
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", joined, flags=re.MULTILINE | re.DOTALL))
    for line in [*blocks, *fenced, *inline]:
        told = re.split(r" {3,}|  #|;|&&|\|", line)[0].strip()  # what stands behind wide spaces says what it does
        if PROGRAM.match(told) or told.startswith("make "):
            yield told


@functools.cache
def targets():
    """What make knows."""
    text = (source.ROOT / "Makefile").read_text()
    return {name for line in re.findall(r"^([\w.-][\w. -]*):(?!=)", text, re.MULTILINE) for name in line.split()}


def fault(command):
    """What is wrong with a command, or ""; flags left out are no fault where the reader is to add some."""
    words = shlex.split(command)
    if words[0] == "make":
        name = next(word for word in words[1:] if "=" not in word)  # what follows may be what it does
        return "" if name in targets() or name.startswith(".") else f"make has no {name}"
    command, behind, trained = command.partition(" -- ")
    if behind and (why := fault(f"thinkfirst-train {trained}")):
        return why
    found = PROGRAM.match(command)
    program = importlib.import_module(f"thinkfirst.launch.{found[1] or found[2]}")
    line = program.define_flags()
    try:
        rest = line(["", *(word for word in shlex.split(command[found.end() :]) if word not in OPEN)])
    except flags.IllegalFlagValueError as error:
        return "" if "must have a value other than None" in str(error) else str(error)
    except flags.Error as error:
        return str(error)
    if len(rest) > 1:
        return f"{rest[1]} is no flag"
    if "recipe" in line and line.recipe in recipes.RECIPES:
        try:
            config.override(recipes.named(line.recipe), line.set)
        except ValueError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    assert not broken(document, document.read_text())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_known(document):
    assert not {command: why for command in commands(document.read_text()) if (why := fault(command))}


def test_all_of_them_are_found():
    text = """Say `make demo`.

    thinkfirst-train --recipe=demo \\
      --set seed=1      with another seed

```sh
make test; ls
```
"""
    assert [shlex.split(command) for command in commands(text)] == [
        ["thinkfirst-train", "--recipe=demo", "--set", "seed=1"],
        ["make", "test"],
        ["make", "demo"],
    ]


def test_what_is_wrong_is_found():
    here = source.ROOT / "README.md"
    text = "# A head\n[a](docs/log.md) [b](docs/none.md) [c](#a-head) [d](#b) [e](https://example.org/x)"
    assert broken(here, text) == ["docs/none.md", "#b"]
    assert not fault("thinkfirst-train --recipe=demo --set stages.grpo.steps=3")
    assert fault("make nothing") and fault("thinkfirst-train --recipe=demo --setting=1")
    assert "nothing" in fault("thinkfirst-train --recipe=demo --set stages.grpo.nothing=3")
    assert fault("thinkfirst-plan --recipe=demo lines")
    assert not fault("thinkfirst-plan ...")


def test_the_reward_written_in_the_documents_works():
    """As a reward of one's own is called: half of 400 words is worth a half, and a program nothing."""
    blocks = re.findall(r"^```python\n(.*?)^```", (source.ROOT / "docs" / "rewards.md").read_text(), re.M | re.S)
    defined = {}
    for block in blocks:
        exec(compile(block, "docs/rewards.md", "exec"), defined)
    completions = [batch.Completion("word " * 200, (), ())] * 2
    problems = [batch.Problem("a", "", "1", "math"), batch.Problem("b", "", "", "code", tests=("assert f(1) == 1",))]
    assert user_worker.checked(defined["brevity"](completions, problems, step=1, phase=""), 2) == [0.5, None]
    assert user_worker.checked(defined["judge"](completions, problems, step=1, phase=""), 2) == [None, None]
