"""A reward of the user's own that fails, in every way it can: nothing of it ever counts as 0."""

import os
import time

import pytest

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import user

PROBLEM = batch.Problem("id", "9 + 9?", "18")
ROWS = [batch.Completion(text, (), ()) for text in ("a", "bb", "")]
MODULE = """
import math, os, sys, time, threading
import numpy as np

calls = 0

def length(completions, problems, *, step, phase):
    print("this is no answer")
    return [len(completion.text) + step for completion in completions]

def of_problem(completions, problems, **about):
    assert [problem.answer for problem in problems] == ["18"] * 3 and about == {"step": 2, "phase": "easy"}
    return np.array([0.25, 0.5, 1.0], np.float32)

def partly(completions, problems, *, step, phase):
    return [1, None, True]

def counted(completions, problems, *, step, phase):
    global calls
    calls += 1
    return [calls] * 3

def raises(completions, problems, *, step, phase):
    return [1 / len(completion.text) for completion in completions]

def nan(completions, problems, *, step, phase):
    return [0.0, math.nan, 1.0]

def one_text(completions, problems, *, step, phase):
    return "abc"

def short(completions, problems, *, step, phase):
    return [1.0, 1.0]

def dies(completions, problems, *, step, phase):
    os._exit(0)

def leaves(completions, problems, *, step, phase):
    sys.exit(3)

def hangs(completions, problems, *, step, phase):
    if step < 100:
        time.sleep(600)
    return [0.5] * 3

def writes_to_the_pipe(completions, problems, *, step, phase):
    os.write(1, b'{"values": [1, 1, 1]}\\n')
    return [0.5] * 3

def old_style(completions, problems):
    return [1.0] * 3

constant = 3.0
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A reward of the module above."""
    (tmp_path / "my_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("import there_is_no_such_module\n")
    (tmp_path / "raising_rewards.py").write_text("raise RuntimeError('at import')\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(name, *, seconds=60.0):
        made.append(user.UserReward(name, seconds=seconds))
        return made[-1]

    yield make
    for one in made:
        one.close()


def score(reward, step=2, phase="easy"):
    return reward(ROWS, [PROBLEM] * 3, step=step, phase=phase)


def test_scores(mine):
    assert score(mine("my_rewards:length")) == [3.0, 4.0, 2.0]
    assert score(mine("my_rewards:of_problem")) == [0.25, 0.5, 1.0]
    assert score(mine("my_rewards:writes_to_the_pipe")) == [0.5] * 3


def test_none_is_not_zero(mine):
    assert score(mine("my_rewards:partly")) == [1.0, None, 1.0]


def test_one_process_serves_every_step(mine):
    counted = mine("my_rewards:counted")
    assert [score(counted) for _ in range(3)] == [[1.0] * 3, [2.0] * 3, [3.0] * 3]


@pytest.mark.parametrize(
    "name, message",
    [
        ("raises", "my_rewards:raises.*it raised ZeroDivisionError: division by zero"),
        ("nan", "completion 1: it gave nan, which is not finite"),
        ("one_text", "it gave 'abc', not a list of 3 numbers or None"),
        ("short", "it gave 2 values for 3 completions"),
        ("dies", "my_rewards:dies.*its process ended without an answer, exit status 0"),
        ("leaves", "its process ended without an answer, exit status 3"),
    ],
)
def test_what_is_no_reward_stops_the_run_and_is_named(mine, name, message):
    with pytest.raises(user.Failed, match=message):
        score(mine(f"my_rewards:{name}"))


@pytest.mark.parametrize(
    "name, message",
    [
        ("my_rewards", "'my_rewards': it must be written module:function"),
        ("no_rewards:f", "module no_rewards cannot be imported: No module named 'no_rewards'"),
        ("broken_rewards:f", "cannot be imported: No module named 'there_is_no_such_module'"),
        ("raising_rewards:f", "it raised RuntimeError: at import"),
        ("my_rewards:f", "module my_rewards has no f"),
        ("my_rewards:constant", "it is a float, not a function"),
        ("my_rewards:old_style", r"signature is \(completions, problems\), but it is called as .*step"),
    ],
)
def test_a_function_that_cannot_be_used_is_found_at_the_start(mine, name, message):
    with pytest.raises(user.Failed, match=message):
        mine(name)


def test_a_call_that_hangs_is_killed_and_its_rewards_are_unknown(mine):
    hangs = mine("my_rewards:hangs", seconds=1.0)
    process = hangs._process
    begin = time.monotonic()
    assert score(hangs) is None
    assert time.monotonic() - begin < 30
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    hangs._seconds = 60.0  # what starts anew has the time that a busy machine takes
    assert score(hangs, step=100) == [0.5] * 3


def test_the_third_hanging_call_in_a_row_stops_the_run(mine):
    hangs = mine("my_rewards:hangs", seconds=0.5)
    assert score(hangs) is None and score(hangs) is None
    with pytest.raises(user.Failed, match=r"my_rewards:hangs.*no answer within 0.5 seconds, 3 calls in a row"):
        score(hangs)


def test_a_large_message_and_a_large_answer_pass(mine):
    rows = [batch.Completion("x" * 100_000, (), ())] * 30
    found = mine("my_rewards:length")(rows, [PROBLEM] * 30, step=0, phase="")
    assert found == [100_000.0] * 30


@pytest.mark.parametrize(
    "text, function, weight",
    [("m:f", "m:f", 1.0), ("0.25*m:f", "m:f", 0.25), ("-2 * a.b:f", "a.b:f", -2.0), ("0*m:f", "m:f", 0.0)],
)
def test_names_with_weights(text, function, weight):
    assert user.named(text) == user.Named(function, weight)


@pytest.mark.parametrize("text", ["x*m:f", "nan*m:f", "inf*m:f"])
def test_a_weight_that_is_no_number(text):
    with pytest.raises(user.Failed, match=r"before the [*] is no number"):
        user.named(text)


def test_a_deadline_must_be_positive():
    with pytest.raises(user.Failed, match=r"must be positive, not 0[.]0 seconds"):
        user.UserReward("m:f", seconds=0.0)
