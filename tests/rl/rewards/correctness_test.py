"""Right or wrong, from a well-formed answer only."""

import pytest

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import correctness


def score(text, gold, *, stopped=True):
    return correctness.score(batch.Completion(text, (), (), stopped), batch.Problem("id", "How many?", gold))


def answered(answer):
    return f"<reasoning>Step 1: 9 + 9 = 18</reasoning><answer>{answer}</answer>"


@pytest.mark.parametrize("answer, gold", [("18", "18"), ("$18.00", "18"), ("1,000", "1000"), ("Blue.", "blue")])
def test_right(answer, gold):
    assert score(answered(answer), gold) == 1.0


@pytest.mark.parametrize(
    "answer, gold",
    [("19", "18"), ("101", "100"), ("-5", "5"), ("1819", "18 and 19"), ("12", "1/2"), ("", ""), ("18 19", "18")],
)
def test_wrong_is_zero_however_near(answer, gold):
    assert score(answered(answer), gold) == 0.0


def test_a_right_answer_in_a_broken_format_is_wrong():
    assert score(answered("18"), "18", stopped=False) == 0.0
    assert score("18", "18") == 0.0
    assert score("<answer>18</answer>", "18") == 0.0
    assert score(answered("17") + "<answer>18</answer>", "18") == 0.0
    assert score("<reasoning>18</reasoning><answer></answer>", "18") == 0.0
