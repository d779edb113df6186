"""Every kind of failure from a text written for it, and equations that hold or do not."""

import pytest

from thinkfirst.rl import batch, failures, marking

FREE = 700  # tokens, more than any reasoning may have without penalty


def written(reasoning, answer):
    return f"<reasoning>{reasoning}</reasoning><answer>{answer}</answer>"


def kind(text, answer="18", *, stopped=True, domain="math", repeat=1):
    spans = tuple((i // repeat, i // repeat + 1) for i in range(len(text) * repeat))
    completion = batch.Completion(text, spans, (-0.1,) * len(spans), stopped)
    problem = batch.Problem("id", "How many are 9 + 9 pens?", answer, domain=domain)
    return marking.mark(problem, completion, "steps").failure


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (written("Step 1: 9 + 9 = 18 pens.\nStep 2: 18 pens + 0 = 18.", "18"), ""),
        ("I do not know", "no answer"),
        ("9 + 9 = 18. The answer is 18.", "format"),
        (written("Step 1: 9 + 9 = 17 pens.", "17"), "arithmetic"),
        (written("Step 1: many pens.", "17"), "premature"),
        (written("Step 1: 9 + 8 = 17 pens.\nStep 2: add 8 pens, 17.", "17"), "wrong"),
    ],
)
def test_kinds(text, expected):
    assert kind(text) == expected


def test_a_cut_text_is_truncated_whatever_it_says():
    assert kind(written("Step 1: 9 + 9 = 17 pens.", "17"), stopped=False) == "truncated"


def test_the_right_number_of_something_else():
    assert kind(written("Step 1: 9 + 9 = 18 pens.", "18 cm"), answer="18 kg") == "unit"


def test_a_long_way_to_a_wrong_answer():
    text = written("Step 1: 9 + 8 = 17 pens.\nStep 2: add 8 pens, 17.", "17")
    assert kind(text, repeat=20) == "verbose"


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("2+3*4=14", [True]),
        ("so 2 + 3 * 4 = 20, as said", [False]),
        ("12 - 5 - 4 = 3", [True]),
        ("20/3=6.67, 20/3=6.66, 20/3=6.65, 7/2=3", [True, True, False, False]),
        ("$1,200 - $200 = $1,000", [True]),
        ("7 x 6 = 42 and 7 \u00d7 6 = 43", [True, False]),
        ("5-8=-3", [True]),
        ("1/0=0", [False]),
        ("(2+3)*4=20", []),
        ("x+3=7, 20% * 50 = 10, 5 = 5", []),
        ("3+4=7%", []),
    ],
)
def test_equations(text, holds):
    assert [held for _, held in failures.equations(text)] == holds


def test_equations_of_a_hostile_text_take_linear_time():
    text = "1+" * 50_000 + "=" + "9" * 50_000
    assert len(failures.equations(text)) <= 1
