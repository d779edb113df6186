"""Structure of the reasoning: numbers worked by hand, and what must not pay."""

import itertools

import pytest

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import trace

QUESTION = "Ann has 3 red and 4 blue pens and buys as many again. How many pens has she?"
STEPS = ("3 + 4 = 7 pens", "7 * 2 = 14 pens", "half of 14 is 7", "14 - 7 = 7", "7 / 7 = 1", "20 - 6 = 14", "2 * 7 = 14")


def numbered(*steps):
    return " ".join(f"Step {number}: {step}." for number, step in enumerate(steps, 1))


def score(reasoning, *, answer="14", difficulty="medium", stopped=True, question=QUESTION):
    text = f"<reasoning>{reasoning}</reasoning><answer>{answer}</answer>"
    problem = batch.Problem("id", question, "14", difficulty=difficulty)
    return trace.score(batch.Completion(text, (), (), stopped), problem)


@pytest.mark.parametrize(
    "steps, difficulty, expected",
    [
        (STEPS[:2], "medium", 1.0),
        (STEPS[:2], "hard", 1.0),
        (STEPS[:2], "unheard of", 1.0),
        (("3 + 4 + 7 = 14",), "easy", 1.0),
        (("3 + 4 + 7 = 14",), "medium", 1 / 2),
        (STEPS[:1], "easy", 1 / 2),  # the answer is not stated
        (STEPS[:1], "medium", 1 / 4),
        ((*STEPS[:2], "The answer is 14"), "medium", 1.0),
        ((STEPS[0], "So the answer is 14"), "medium", 1 / 2),  # a bare conclusion is no step, nor idle
        ((STEPS[0], STEPS[0], STEPS[1]), "medium", 5 / 6),  # a repeat is idle
        ((STEPS[0], "", STEPS[1]), "medium", 5 / 6),
        ((STEPS[0], "", "", *STEPS[1:3], STEPS[5]), "medium", 4 / 6),  # more steps do not dilute them
        (("3 + 4 + 7 = 14", "", "", "", "", ""), "easy", 0.0),
        (("So the answer is 14",), "easy", 0.0),
        (STEPS[:6], "medium", 1.0),  # the useful maximum, 2 * 2 + 2
        (STEPS[:7], "medium", 5 / 6),
        ((*STEPS[:3], STEPS[5]), "easy", 1.0),  # 2 * 1 + 2
        ((*STEPS[:4], STEPS[5]), "easy", 3 / 4),
    ],
)
def test_by_hand(steps, difficulty, expected):
    assert score(numbered(*steps), difficulty=difficulty) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "reasoning",
    [
        "3 + 4 = 7 pens. 7 * 2 = 14 pens.",
        "Step 2: 3 + 4 = 7 Step 3: 7 * 2 = 14",
        "Step 1: 3 + 4 = 7 Step 3: 7 * 2 = 14",
        "Step 1: 3 + 4 = 7 Step 1: 7 * 2 = 14",
        "Step 2: 3 + 4 = 7 Step 1: 7 * 2 = 14",
        "Step 1: 3 + 4 = 7 Step 2: 7 * 2 = 14 Step 2: 7 * 2 = 14",
        "Step \u0661: 3 + 4 = 7 Step \u0662: 7 * 2 = 14",
    ],
)
def test_headings_must_run_from_one_without_gap_or_repeat(reasoning):
    assert score(reasoning) == 0.0


def test_not_well_formed_is_zero():
    assert score(numbered(*STEPS[:2]), stopped=False) == 0.0
    assert score(numbered(*STEPS[:2]) + "</reasoning>") == 0.0
    assert score(numbered(*STEPS[:2]), answer="") == 0.0


@pytest.mark.parametrize(
    "junk",
    [
        "",
        "First, then, therefore",
        "First, then, therefore, hence, thus, finally, so, because, however, moreover, consequently",
        "Let us think step by step about the problem",
        "Perpend wherefore notwithstanding heretofore",  # no connective of the list, but about nothing either
        "= + - * / = <",
        "14 14 14 14",
        "\u00b2 \u00b3 \u00b9",
        QUESTION,
    ],
)
def test_junk_is_no_step(junk):
    assert score(numbered(junk), difficulty="easy") == 0.0
    assert score(numbered(STEPS[0], junk, STEPS[1])) == pytest.approx(5 / 6)


def test_connectives_around_a_step_change_nothing():
    dressed = "First, then, therefore, so because of this we have 3 + 4 = 7 pens"
    for extra in ((), (STEPS[1],), (dressed,), (STEPS[0],)):
        assert score(numbered(dressed, *extra)) == score(numbered(STEPS[0], *extra))
    assert score(numbered(STEPS[1], "Then, THEREFORE: 7*2=14 (pens)!")) == score(numbered(STEPS[1], STEPS[1]))


def test_repeating_steps_never_pays():
    for first in (STEPS[0], STEPS[1]):
        alone = score(numbered(first))
        for copies in range(2, 9):
            assert score(numbered(*[first] * copies)) < alone


def test_more_steps_than_expected_never_pay():
    best = score(numbered(*STEPS[:2]))
    for extra in (*STEPS[2:], "", "so", "The answer is 14"):
        assert score(numbered(STEPS[0], extra, STEPS[1])) <= best
        assert score(numbered(*STEPS[:2], extra)) <= best
    many = [f"{n} + {n} = {2 * n}" for n in range(1, 40)]
    scores = [score(numbered(*many[:n], "7 + 7 = 14")) for n in range(1, 40)]
    assert scores[:5] == [1.0] * 5 and scores[10:] == [0.0] * 29
    assert all(a > b for a, b in itertools.pairwise(scores[4:11]))


@pytest.mark.parametrize(
    "answer, last, stated",
    [
        ("14", "7 * 2 = 14", True),
        ("14", "7 * 2 = 14.0 pens", True),
        ("$14", "7 * 2 = 14", True),
        ("1,400", "700 * 2 = 1400", True),
        ("14", "7 * 20 = 140", False),
        ("14", "2 * 57 = 114", False),
        ("4", "2 * 7 = 14", False),
        ("-5", "2 - 7 = -5", True),
        ("5", "2 - 7 = -5", False),
        ("-5", "15 - 5 + 4", False),
        ("1/2", "3 / 6 gives 0.5", True),
        ("12", "3 / 6 gives 1/2", False),
        ("blue", "3 red, 4 pens: Blue.", True),
        ("blue", "3 red, 4 bluest pens", False),
        ("blue pens", "3 red, 4 blue pens", True),
        ("blue pens", "4 pens of 3 blue", False),
        ("???", "3 red, 4 ??? pens", False),
    ],
)
def test_the_last_step_states_the_answer_whole(answer, last, stated):
    assert score(numbered("3 and 9 make 12", last), answer=answer) == (1.0 if stated else 0.5)
    assert score(numbered(last, "3 and 9 make 13"), answer=answer) == 0.5


def test_wrong_arithmetic_is_not_its_business():
    assert score(numbered("3 + 4 = 8", "8 * 2 = 15"), answer="15") == 1.0


def test_steps_without_numbers_must_be_about_the_question():
    logic = numbered("All pens are blue things", "Blue things are never red")
    assert score(logic, answer="never red", question="If all pens are blue, is one red?") == 1.0
    assert score(logic, answer="never red", question="?") == 0.0
