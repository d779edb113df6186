"""A program scores the share of the hidden tests it passes, whatever else it says or does."""

from collections.abc import Iterator

import pytest

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import code
from thinkfirst.rl.sandbox import pool

SQUARES = ("assert f(7) == 49", "assert f(8) == 64", "assert abs(f(0.5) - 0.25) < 1e-6")
RIGHT = "def f(x): return x * x"


@pytest.fixture(scope="module")
def box() -> Iterator[pool.Sandbox]:
    with pool.Sandbox(2) as box:
        yield box


def passed(box, program, *tests):
    (verdict,) = code.judge(box, [(program, tests or SQUARES)])
    return verdict.passed, verdict.total


def test_shares_by_hand(box):
    assert passed(box, RIGHT) == (3, 3)
    assert passed(box, "def f(x): return float(x * x)\nprint('done ' * 500)") == (3, 3)
    assert passed(box, "def f(x): return 49") == (1, 3)
    assert passed(box, "def f(x): return 64 if x == 8 else 0.25") == (2, 3)
    assert passed(box, "def f(x): return str(x * x)") == (0, 3)
    assert passed(box, "def f(x):") == (0, 3)
    assert passed(box, "") == (0, 3)


def test_equality_is_pythons(box):
    assert passed(box, "def f(x): return (1, 2)", "assert f(0) == [1, 2]") == (0, 1)
    assert passed(box, "def f(x): return True", "assert f(0) == 1") == (1, 1)
    assert passed(box, "def f(x): return float('nan')", "assert f(0) == 0.0", "assert not f(0)") == (0, 2)
    assert passed(box, "def f(x): return -0.0", "assert f(0) == 0") == (1, 1)
    assert passed(box, "def f(x): return {2, 1}", "assert f(0) == {1, 2}") == (1, 1)


def test_a_program_cannot_answer_for_the_tests(box):
    tests = ("def near(a, b): return abs(a - b) < 1", "assert near(f(7), 49)", "assert math.isclose(f(8), 64)")
    tests += ("assert near(f(7), 49) == True",)
    cheat = "def near(a, b): return True\nimport math, builtins\nmath.isclose = near\nbuiltins.abs = lambda x: 0\n"
    assert passed(box, cheat + "def f(x): return 7", *tests) == (0, 3)
    assert passed(box, cheat + RIGHT, *tests) == (3, 3)


def test_verdicts_come_in_order(box):
    wrong = "def f(x): return 0"
    verdicts = code.judge(box, [(RIGHT, SQUARES), (wrong, SQUARES), (RIGHT, SQUARES[:1]), (wrong, SQUARES[2:])])
    assert [(verdict.passed, verdict.total) for verdict in verdicts] == [(3, 3), (0, 3), (1, 1), (0, 1)]
    assert [verdict.fraction for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0]
    assert [verdict.all_passed for verdict in verdicts] == [True, False, True, False]
    assert code.judge(box, []) == []


def test_the_status_is_the_sandboxs(box):
    (verdict,) = code.judge(box, [("import os\nos._exit(0)", SQUARES)])
    assert verdict == code.Verdict(0, 3, "crashed")


def test_what_was_not_judged_has_no_score():
    assert code.Verdict(0, 3, "lost").fraction is None
    assert not code.Verdict(3, 3, "lost").all_passed


@pytest.mark.parametrize(
    "text, program",
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```\n```py\ny = 2\n```", "y = 2\n"),
        ("```python\nx = 1\n", "```python\nx = 1\n"),
        ("```python\nx = '```'\n```", "x = '```'\n"),
        ("", ""),
    ],
)
def test_the_program_of_a_text(text, program):
    assert code.program(text) == program


def test_a_judge_says_what_judging_does_and_runs_equal_programs_once(box, monkeypatch):
    problem = batch.Problem("id", "Q", "", domain="code", tests=SQUARES)
    jobs = []
    run = box.run
    monkeypatch.setattr(box, "run", lambda asked: jobs.append(len(asked)) or run(asked))
    judge = code.Judge(box)
    judge.hand_in([(RIGHT, SQUARES), (RIGHT, SQUARES), ("def f(x): return 49", SQUARES)])
    assert jobs == [4]  # two programs, each with its calls and its check
    assert judge(RIGHT, problem) == 1.0 and judge("def f(x): return 49", problem) == 1 / 3
    assert jobs == [4]
    assert judge("def f(x): return 64", problem) == 1 / 3 and jobs == [4, 2]
