"""Strict and lenient readings of the same texts, by domain and by form."""

import pytest

import tolerance
from thinkfirst.rl import batch, marking
from thinkfirst.rl.data import small_world

GOOD = "<reasoning>Step 1: 9+9=18.</reasoning><answer>18</answer>"


def marked(text, problem=None, *, form="steps", stopped=True, judge=None):
    spans = tuple((i, i + 1) for i in range(len(text)))
    completion = batch.Completion(text, spans, (-0.1,) * len(text), stopped)
    return marking.mark(problem or batch.Problem("id", "Q", "18"), completion, form, judge)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, (True, True, True)),
        (GOOD.replace("18</answer>", "17</answer>"), (False, False, True)),
        ("9+9=18. The answer is 18.", (True, False, False)),
        ("first 18, then 19", (False, False, False)),
        (GOOD + " bye", (True, False, False)),
        ("", (False, False, False)),
    ],
)
def test_strict_and_lenient_numbers(text, expected):
    found = marked(text)
    assert (found.right, found.right_strictly, found.well_formed) == expected


def test_truncated_text_is_not_well_formed():
    found = marked(GOOD, stopped=False)
    assert (found.right, found.right_strictly, found.well_formed) == (True, False, False)


CHOICE = batch.Problem("id", "Q", "B", domain="science", choices=("Paris", "Rome", "Oslo"))


@pytest.mark.parametrize(
    ("text", "score", "vote"),
    [
        ("<answer>(b)</answer>", 1, 1),
        ("<answer>Rome</answer>", 1, 1),
        ("<answer>Oslo</answer>", 0, 2),
        ("I think A is wrong, so the answer is B.", 1, 1),
        ("Rome", 1, 1),
        ("A stone falls", 0, "A stone falls"),
    ],
)
def test_choices(text, score, vote):
    found = marked(text, CHOICE)
    assert (found.lenient, found.vote) == (score, vote)


def test_spans_and_general_answers_may_be_all_there_is():
    assert marked("the Rhine", batch.Problem("id", "Q", "Rhine", domain="span")).lenient == 1
    assert marked("Rhine", batch.Problem("id", "Q", "Elbe", domain="knowledge")).lenient == 0


def test_equal_numbers_are_one_vote():
    votes = {marked(f"<answer>{text}</answer>").vote for text in ("18", "$18", "18.0")}
    assert len(votes) == 1
    assert marked("none").vote is None


def test_programs_are_unknown_without_a_judge_and_asked_of_one():
    problem = batch.Problem("id", "Q", "", domain="code", tests=("assert f(1) == 2",))
    text = "```python\ndef f(x): return 2 * x\n```"
    assert marked(text, problem).lenient is None and marked(text, problem).failure == ""
    found = marked(text, problem, judge=lambda program, problem: 1.0 if "2 * x" in program else 0.0)
    assert (found.lenient, found.strict, found.vote, found.failure) == (1.0, 0.0, None, "format")


def test_open_problems_have_the_rubric_s_word_and_do_not_fail():
    row = small_world.worked(0, 0, "creative", "easy", slips=False)
    found = marked(row.completion, row.problem, form="sections")
    assert found.is_open and found.lenient == found.strict == 1 and found.failure == "" and found.vote is None
    assert marked("", row.problem).strict == 0


def test_forms_ask_for_different_traces():
    row = small_world.worked(0, 0, "math", "easy", slips=False)
    assert marked(row.completion, row.problem, form="sections").trace == 1
    steps = marked(row.completion, row.problem, form="steps")
    assert steps.trace == 0 and steps.well_formed
    assert not marked(GOOD, form="sections").well_formed


def test_certainty_is_that_of_the_answer():
    text = GOOD
    logp = tuple(-1.0 if text[i : i + 2] == "18" and i > 40 else -0.1 for i in range(len(text)))
    completion = batch.Completion(text, tuple((i, i + 1) for i in range(len(text))), logp)
    found = marking.mark(batch.Problem("id", "Q", "18"), completion, "steps").certainty
    tolerance.assert_close(found, 2.718281828459045**-0.55)
    assert marked("18").certainty is None
