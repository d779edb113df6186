"""The published solutions of MBPP and HumanEval pass their tests; broken in one character, they do not."""

import contextlib
import gzip
import json
import random
import subprocess
import sys
import warnings

import pytest

from thinkfirst.rl.data import mix
from thinkfirst.rl.rewards import code
from thinkfirst.rl.sandbox import pool

ROWS = {"mbpp": 974, "sanitized": 427, "humaneval": 164}


@pytest.fixture(scope="module", params=ROWS)
def references(request, data_dir):
    """(id, what is given, solution, hidden tests as they are read, the tests as published) of every row."""
    read = lambda kind, path: [row.problem for row in mix.READERS[kind](f"{data_dir}/{path}")]  # noqa: E731
    if request.param == "humaneval":
        with gzip.open(data_dir / "humaneval/HumanEval.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line in file]
        found = [
            (
                row["task_id"],
                row["prompt"],
                row["canonical_solution"],
                problem.tests,
                f"{row['test']}\ncheck({row['entry_point']})",
            )
            for row, problem in zip(rows, read("humaneval", "humaneval/HumanEval.jsonl.gz"), strict=True)
        ]
    elif request.param == "mbpp":
        rows = [json.loads(line) for line in (data_dir / "mbpp/mbpp.jsonl").read_text().splitlines()]
        found = list(map(mbpp, rows, read("mbpp", "mbpp/mbpp.jsonl")))
    else:
        rows = json.loads((data_dir / "mbpp/sanitized-mbpp.json").read_text())
        found = list(map(mbpp, rows, read("mbpp", "mbpp/sanitized-mbpp.json")))
    assert len(found) == ROWS[request.param]
    return found


def mbpp(row, problem):
    setup = [text for text in (*row.get("test_imports", ()), row.get("test_setup_code", "")) if text]
    return row["task_id"], "", row["code"], problem.tests, "\n".join((*setup, *row["test_list"]))


@pytest.mark.slow
def test_every_reference_passes(references):
    with pool.Sandbox(2) as box:
        verdicts = code.judge(box, [(given + solution, tests) for _, given, solution, tests, _ in references])
    failed = [(row[0], verdict) for row, verdict in zip(references, verdicts, strict=True) if not verdict.all_passed]
    assert failed == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_reference_broken_in_one_character_is_refused(references):
    """That a broken program fails its tests is Python's word: it runs the published ones as they are."""
    broken = [changed_in_one_character(given, solution) for _, given, solution, _, _ in references]
    asked = [[f"{text}\n{plain}" for text in texts] for texts, (*_, plain) in zip(broken, references, strict=True)]
    plainly = subprocess.run(
        [sys.executable, "-c", PLAINLY], input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True
    )
    failing = json.loads(plainly.stdout)
    chosen = [(row, texts[place]) for row, texts, place in zip(references, broken, failing, strict=True) if place >= 0]
    assert len(chosen) > 0.95 * len(references)
    with pool.Sandbox(2) as box:
        verdicts = code.judge(box, [(text, tests) for (*_, tests, _), text in chosen])
    assert [row[0] for (row, _), verdict in zip(chosen, verdicts, strict=True) if verdict.all_passed] == []


def changed_in_one_character(given, solution):
    """Up to a dozen programs that still compile, each with one digit, letter or operator changed, by a fixed draw."""
    program = given + solution
    draw = random.Random(program)
    swap = dict(zip("+-*/<>0123456789", "-++*><1234567890", strict=True))
    places = [place for place in range(len(given), len(program)) if program[place] in swap or program[place].islower()]
    found = []
    for place in draw.sample(places, len(places)):
        text = program[:place] + swap.get(program[place], "z") + program[place + 1 :]
        with contextlib.suppress(SyntaxError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, "broken", "exec")
            found.append(text)
        if len(found) == 12:
            break
    return found


# The place of the first source of each row that fails, by itself and not by running out of time; -1 for none.
PLAINLY = """
import json, os, resource, sys

def fails(source):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nowhere, fd)
        exec(source, {"__name__": "solution"})
        os._exit(0)
    except BaseException:
        os._exit(1)

rows = json.load(sys.stdin)
found = [next((place for place, source in enumerate(row) if fails(source)), -1) for row in rows]
print(json.dumps(found))
"""
