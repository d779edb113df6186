"""The weighted reward, and that no wrong completion ever outscores a right one."""

import itertools
import math

import pytest

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import composite, confidence, fault, trace

FIRST = composite.RewardWeights(trace=0.45, correctness=0.40, confidence=0.15, verbosity=0.05)
LAST = composite.RewardWeights(trace=0.25, correctness=0.60, confidence=0.15, verbosity=0.05)
PROBLEM = batch.Problem("id", "Ann has 3 red and 4 blue pens and buys as many again. How many pens?", "14")


def annealed(share):
    return composite.RewardWeights(trace=0.45 - 0.20 * share, correctness=0.40 + 0.20 * share)


def written(reasoning, answer, *, certainty=0.5, stopped=True):
    """A completion of one token per character, the whole answer of probability `certainty`."""
    text = f"<reasoning>{reasoning}</reasoning><answer>{answer}</answer>"
    spans = tuple((i, i + 1) for i in range(len(text)))
    return batch.Completion(text, spans, (math.log(certainty),) * len(text), stopped)


def test_default_weights_are_those_of_the_first_step():
    assert composite.RewardWeights() == FIRST


@pytest.mark.parametrize(
    "reasoning, answer, total, parts",
    [
        ("Step 1: 3 + 4 = 7. Step 2: 7 * 2 = 14", "14", 0.45 + 0.40 + 0.15 * 0.75, (1, 1, 0.75, 0)),
        ("Step 1: 3 + 4 = 7. Step 2: 7 * 2 = 15", "15", 0.225 - 0.15 * 0.25, (1, 0, -0.25, 0)),
        ("3 + 4 = 7, twice that is 14", "14", 0.40 + 0.15 * 0.75, (0, 1, 0.75, 0)),
        ("a" * 225, "15", -0.15 * 0.25 - 0.05 * 0.5, (0, 0, -0.25, 0.5)),
    ],
)
def test_by_hand(reasoning, answer, total, parts):
    graded = composite.grade(written(reasoning, answer), PROBLEM, FIRST)
    assert graded.total == pytest.approx(total, rel=1e-12)
    names = ("trace", "correctness", "confidence", "verbosity", "format")
    assert set(graded.parts) == set(names)
    assert [graded.parts[name] for name in names] == pytest.approx([*parts, 1])
    assert graded.parsed.answer == answer


def test_a_broken_format_is_minus_the_confidence_weight_and_the_length():
    graded = composite.grade(written("Step 1: 3 + 4 = 7", "14", stopped=False), PROBLEM, FIRST)
    assert graded.total == pytest.approx(-0.15)
    assert graded.parts["format"] == 0.0 and graded.parsed.fault == "truncated"
    assert composite.grade(written("a" * 300, "14", stopped=False), PROBLEM, FIRST).total == pytest.approx(-0.20)


def extremes():
    """Completions at the corners of everything but correctness: trace, certainty, length."""
    traces = ("Step 1: 3 + 4 = 7 pens. Step 2: {} = 7 * 2", "Step 1: 3 + 4 = 7 pens", "Step 1:", "a")
    return itertools.product(traces, (1e-9, 0.5, 1.0), ("", " " * 400))


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.75, 1])
def test_no_wrong_completion_outscores_a_right_one(share):
    weights = annealed(share)

    def totals(answer, *, stopped=True):
        return [
            composite.grade(
                written(text.format(answer) + padding, answer, certainty=certainty, stopped=stopped), PROBLEM, weights
            ).total
            for text, certainty, padding in extremes()
        ]

    right, wrong, broken = totals("14"), totals("15"), totals("14", stopped=False)
    assert min(right) - max(wrong) >= composite.margin(weights) - 1e-12 > 0
    assert min(right) - max(wrong) == pytest.approx(composite.margin(weights), abs=1e-6)  # the bound is met
    assert all(b <= w for b, w in zip(broken, wrong, strict=True))
    assert max(broken) < 0 < min(right)


def test_margin_by_hand():
    assert composite.margin(FIRST) == pytest.approx(0.125)
    assert composite.margin(LAST) == pytest.approx(0.425)
    assert composite.margin(composite.RewardWeights(trace=0.8, correctness=0.4)) == pytest.approx(-0.05)


def test_scores_of_any_size_keep_the_order():
    grid = [0.0, 0.3, 1.0]
    for weights in (FIRST, LAST):
        right = [
            composite.combine({"trace": t, "correctness": 1.0, "confidence": c, "verbosity": v}, weights)
            for t, c, v in itertools.product(grid, grid, grid)
        ]
        wrong = [
            composite.combine({"trace": t, "correctness": 0.0, "confidence": -c, "verbosity": v}, weights)
            for t, c, v in itertools.product(grid, grid, grid)
        ]
        assert min(right) > max(wrong)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name, module", [("trace", trace), ("confidence", confidence)])
def test_a_part_that_is_not_finite_raises_and_is_named(monkeypatch, name, module, bad):
    monkeypatch.setattr(module, "score", lambda completion, problem: bad)
    with pytest.raises(fault.NotFinite, match=f"reward part {name} of problem 'id' is {bad}"):
        composite.grade(written("Step 1: 3 + 4 = 7", "14"), PROBLEM, FIRST)


def test_a_log_prob_that_is_not_finite_names_confidence():
    good = written("Step 1: 3 + 4 = 7", "14")
    bad = batch.Completion(good.text, good.spans, (math.nan, *good.logp[1:]))
    with pytest.raises(ValueError, match="confidence: log-prob of token 0 is nan"):
        composite.grade(bad, PROBLEM, FIRST)


@pytest.mark.parametrize("name", ["trace", "correctness", "confidence", "verbosity"])
@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_bad_weights_raise(name, weight):
    with pytest.raises(ValueError, match=f"reward weight {name}"):
        composite.RewardWeights(**{name: weight})
