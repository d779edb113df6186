"""What an evaluation says of given completions, by hand."""

import tolerance
from thinkfirst.rl import batch, evaluate, marking

CHOICES = ("x", "y")


def row(domain, answer, text, **fields):
    problem = batch.Problem(f"{domain} {answer}", "Q", answer, domain=domain, **fields)
    spans = tuple((i, i + 1) for i in range(len(text)))
    return marking.mark(problem, batch.Completion(text, spans, (0.0,) * len(text)), "steps")


def said(answer):
    return f"<reasoning>Step 1: it is {answer}.</reasoning><answer>{answer}</answer>"


def test_a_summary_by_hand():
    """Two sums, of which one is right once in two and the other never, a choice right both times, a text."""
    rows = [
        row("math", "5", said(5)), row("math", "5", said(6)),
        row("math", "7", "7"), row("math", "7", said(8)),
        row("logic", "A", said("A"), choices=CHOICES), row("logic", "A", said("x"), choices=CHOICES),
        row("creative", "", said("no")), row("creative", "", said("no")),
    ]  # fmt: skip
    found = evaluate.summary(rows, 2)
    assert (found["problems"], found["num_samples"]) == (4, 2)
    tolerance.assert_close([found["accuracy"], found["accuracy_strict"]], [4 / 6, 3 / 6])
    assert found["pass_at"] == {"1": 4 / 6, "2": 1.0}
    assert found["maj_at"] == {"1": 4 / 6, "2": (0.5 + 0.5 + 1) / 3}
    tolerance.assert_close([found["format_rate"], found["truncated_rate"]], [7 / 8, 0.0])
    assert found["by_domain"].keys() == {"math", "logic", "creative"}
    assert found["by_difficulty"] == {"medium": 4 / 6}
    assert found["failures"]["format"] == 1 / 8 and sum(found["failures"].values()) == 3 / 8
    assert found["calibration_error"] == 2 / 5  # all sure, two of the five well-formed answers wrong
    assert [pair["strict"] for pair in found["by_problem"]][:3] == [0.5, 0.0, 1.0]
    assert [pair["open"] for pair in found["by_problem"]] == [False] * 3 + [True]


def test_what_nobody_could_judge_counts_nowhere():
    code = row("code", "", said("def f(x): return x"), tests=("assert f(1) == 1",))
    found = evaluate.summary([code], 1)
    assert found["accuracy"] is None and found["by_domain"] == {"code": None} and found["pass_at"] == {"1": None}


def test_interval_worked_by_hand():
    """Scores 0 0 1 1: mean .5, standard deviation .577, half width 1.96 * .577 / 2 = .566, cut at 0 and 1."""
    assert evaluate.interval([0.0, 0.0, 1.0, 1.0]) == (0.0, 1.0)
    low, high = evaluate.interval([0.4, 0.5, 0.5, 0.6])
    tolerance.assert_close([low, high], [0.41998, 0.58002], slack=1e8)  # four digits are given
    assert evaluate.interval([1.0]) == (0.0, 1.0)
    low, high = evaluate.interval([0.0] * 10)
    assert low == 0 and 0.27 < high < 0.28  # Wilson's
