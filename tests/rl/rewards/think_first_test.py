"""The weighted reward of think_first: by hand, gated, and never better for a wrong answer than for a right one."""

import itertools
import math

import pytest

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import domains, parse, think_first

WEIGHTS = think_first.Weights()
PROBLEM = batch.Problem("id", "9 + 9?", "18")
CODE = batch.Problem("code", "Write f.", "", domain="code", tests=("assert f(1) == 2",))
OPEN = batch.Problem("open", "Write exactly 4 words.", "", domain="open")
SECTIONS = (
    "## Analysis & Strategy\nAdd what Ann and Bob have.\n",
    "## Step-by-Step Execution\n9 + 9 = 18\n",
    "## Verification & Self-Correction\n18 - 9 = 9\n",
    "## Final Synthesis\nBoth have 18 pens.\n",
)
REASONING = "".join(SECTIONS)


def completion(answer, *, reasoning=REASONING, tokens=0, stopped=True):
    """One token a character, or none known; `tokens` more that wrote nothing."""
    text = f"<reasoning>{reasoning}</reasoning><answer>{answer}</answer>"
    spans = (*((i, i + 1) for i in range(len(text))), *[(0, 0)] * tokens) if tokens else ()
    return batch.Completion(text, spans, (0.0,) * len(spans), stopped)


def grade(answer, problem=PROBLEM, *, weights=WEIGHTS, judges=think_first.NO_JUDGES, anneal=1.0, **how):
    return think_first.grade(completion(answer, **how), problem, weights, judges, anneal=anneal)


@pytest.mark.parametrize(
    "anneal, right, wrong", [(1.0, 0.90, 0.15), (0.5, 0.75, 0.075), (0.0, 0.60, 0.0)]
)
def test_style_is_annealed_and_correctness_is_not(anneal, right, wrong):
    assert grade("18", anneal=anneal).total == pytest.approx(right)
    assert grade("19", anneal=anneal).total == pytest.approx(wrong)


def test_length_counts_in_tokens_beyond_the_allowance():
    reasoning = len(REASONING)
    over = think_first.FREE_TOKENS - reasoning + think_first.FREE_TOKENS // 2
    graded = grade("18", tokens=over)
    assert graded.parts["verbosity"] == pytest.approx(0.5)
    assert graded.total == pytest.approx(0.90 - 0.05 / 2)
    assert grade("18").parts["verbosity"] is None


def test_a_program_is_worth_what_its_judge_says():
    asked = []

    def judge(program, problem):
        asked.append((program, problem))
        return verdict

    for verdict, total in ((1.0, 0.90), (1, 0.90), (0.5, 0.45), (0.0, 0.15), (None, None)):
        graded = grade("```python\nx = 1\n```", CODE, judges=think_first.Judges(code=judge))
        assert graded.parts["correctness"] == verdict
        assert graded.total == (None if total is None else pytest.approx(total))
    assert asked == [("x = 1", CODE)] * 5
    assert grade("", CODE, judges=think_first.Judges(code=judge)).total == pytest.approx(-0.10)
    assert len(asked) == 5, "nobody is asked about no program"


@pytest.mark.parametrize("verdict", [math.nan, math.inf, 2.0, -0.1, "1"])
@pytest.mark.parametrize("name, problem", [("code", CODE), ("text", OPEN)])
def test_a_verdict_that_is_none_stops(verdict, name, problem):
    judges = think_first.Judges(**{name: lambda text, problem: verdict})
    with pytest.raises(ValueError, match=f"judge of problem '{problem.id}' gave {verdict!r}"):
        grade("It was so calm", problem, judges=judges)


def test_a_judge_of_texts_is_one_item_of_the_rubric():
    for verdict, rubric in ((None, 1.0), (0.4, 0.8), (0, 2 / 3)):
        judges = think_first.Judges(text=lambda text, problem, verdict=verdict: verdict)
        graded = grade("It was so calm", OPEN, judges=judges)
        assert graded.parts["rubric_judge"] == verdict
        assert graded.parts["rubric"] == pytest.approx(rubric)
        assert graded.total == pytest.approx(0.9 * rubric)


def test_weights_are_those_of_the_domain():
    weights = dict.fromkeys(domains.NAMES.values(), WEIGHTS) | {"math": think_first.Weights(merit=2.0)}
    reward = think_first.make(weights, think_first.Judges(), anneal_at=lambda step: 1 / step)
    assert reward(completion("18"), PROBLEM, step=1, phase="").total == pytest.approx(2.30)
    assert reward(completion("18"), PROBLEM, step=2, phase="").total == pytest.approx(2.15)
    general = batch.Problem("id", "?", "18", domain="general")
    assert reward(completion("18"), general, step=1, phase="").total == pytest.approx(0.90)


def test_margin_by_hand_is_met():
    assert think_first.margin(WEIGHTS) == pytest.approx(0.10)
    assert think_first.margin(think_first.Weights(structure=0.5)) == pytest.approx(-0.075)
    shares = [0.0, 0.5, 1.0]
    names = ("structure", "format", "format_near", "verbosity")

    def totals(correctness, has_answer=True):
        return [
            think_first.combine(
                {**dict(zip(names, found, strict=True)), "correctness": correctness}, WEIGHTS, has_answer=has_answer
            )
            for found in itertools.product(shares, repeat=4)
        ]

    assert min(totals(1.0)) - max(totals(0.5)) == pytest.approx(think_first.margin(WEIGHTS))
    assert max(totals(0.0)) < min(totals(1.0))
    assert max(totals(0.0, has_answer=False)) < min(totals(0.0))


@pytest.mark.parametrize("cut", range(0, 190, 7))
def test_a_text_cut_off_anywhere_is_below_any_with_an_answer(cut):
    whole = completion("18")
    found = think_first.grade(
        batch.Completion(whole.text[:cut], (), (), stopped=False), PROBLEM, WEIGHTS, think_first.Judges()
    )
    assert found.total == pytest.approx(-0.15) and found.extracted is None


def test_no_subset_of_sections_pays_more_than_all_and_none_makes_wrong_right():
    wrong, right = [], []
    for count in range(5):
        for sections in itertools.permutations(SECTIONS, count):
            reasoning = "".join(sections) or "none"
            wrong.append(grade("19", reasoning=reasoning).total)
            right.append(grade("18", reasoning=reasoning).total)
    assert max(wrong) == grade("19").total and max(right) == grade("18").total
    assert max(wrong) < min(right)


def test_an_unknown_domain_is_named():
    with pytest.raises(ValueError, match="problem 'id': domain 'chess' is none of math, choice, code"):
        grade("18", batch.Problem("id", "?", "18", domain="chess"))


def test_a_question_whose_gold_is_no_option_is_named():
    with pytest.raises(ValueError, match="problem 'id': its answer 'Bern' is none of its choices"):
        grade("A", batch.Problem("id", "?", "Bern", choices=("Rome", "Oslo")))


@pytest.mark.parametrize("name", ["merit", "structure", "format", "near", "verbosity"])
@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_bad_weights_raise(name, weight):
    with pytest.raises(ValueError, match=f"reward weight {name}"):
        think_first.Weights(**{name: weight})


@pytest.mark.parametrize("unit", ["## Final Synthesis\n", "#", "```python\n", "1,", "\\frac{1}", "the ", "1 and "])
@pytest.mark.parametrize("domain", ["math", "code", "span", "general", "summary"])
@pytest.mark.timeout(60)  # a quadratic reading of 100,000 characters would not end in it
def test_long_texts_are_read(unit, domain):
    long = unit * (100_000 // len(unit))
    problem = batch.Problem("id", "Say it.\nThe fox ran.", "18", domain=domain)
    for text in (long, f"<reasoning>{long}</reasoning><answer>{long}</answer>"):
        graded = think_first.grade(batch.Completion(text, (), ()), problem, WEIGHTS, think_first.Judges())
        assert graded.parsed == parse.parse(batch.Completion(text, (), ()))
