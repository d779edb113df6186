"""A proper score of the policy's own probabilities."""

import math

import pytest

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import confidence

PROBLEM = batch.Problem("id", "9 + 9?", "18")


def written(tokens):
    """A completion from (text, probability) pairs, one per token."""
    spans, begin = [], 0
    for piece, _ in tokens:
        spans.append((begin, begin + len(piece)))
        begin += len(piece)
    return batch.Completion("".join(t for t, _ in tokens), tuple(spans), tuple(math.log(p) for _, p in tokens))


def answered(*tokens, before=0.1):
    return written(
        [("<reasoning>Step 1: 9 + 9</reasoning>", before), ("<answer>", before), *tokens, ("</answer>", before)]
    )


@pytest.mark.parametrize(
    "tokens, expected",
    [
        ([("18", 0.5)], 0.75),
        ([("1", 0.5), ("8", 0.5)], 0.75),
        ([("1", 0.25), ("8", 1.0)], 0.75),  # the geometric mean of 1/4 and 1 is 1/2
        ([("18", 1.0)], 1.0),
        ([("19", 0.5)], -0.25),
        ([("1", 0.9), ("9", 0.4)], -0.36),
        ([("19", 1.0)], -1.0),
    ],
)
def test_by_hand(tokens, expected):
    assert confidence.score(answered(*tokens), PROBLEM) == pytest.approx(expected, rel=1e-12)


def test_only_the_answer_counts():
    tokens = (" ", 0.01), ("18", 0.5), ("\n", 0.01)
    assert confidence.score(answered(*tokens, before=0.9), PROBLEM) == pytest.approx(0.75)
    assert confidence.score(answered(*tokens, before=1e-9), PROBLEM) == pytest.approx(0.75)


def test_a_token_across_the_border_counts():
    tokens = [("<reasoning>a</reasoning><answer", 0.1), (">1", 0.25), ("8<", 1.0), ("/answer>", 0.1)]
    assert confidence.score(written(tokens), PROBLEM) == pytest.approx(0.75)


def test_length_is_no_confidence():
    short = confidence.score(answered(("18", 0.7)), PROBLEM)
    assert confidence.score(answered(*[(c, 0.7) for c in "18.00000000"]), PROBLEM) == pytest.approx(short)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.35, 0.5, 0.8, 1.0])
def test_the_rule_is_proper(p):
    stated = [i / 100 for i in range(101)]
    expected = [
        p * confidence.quadratic(c, right=True) + (1 - p) * confidence.quadratic(c, right=False) for c in stated
    ]
    assert stated[expected.index(max(expected))] == p
    assert max(expected) == pytest.approx(p**2)


def test_right_is_never_below_wrong():
    for c in (i / 100 for i in range(101)):
        assert confidence.quadratic(c, right=True) >= 0 >= confidence.quadratic(c, right=False)


def test_a_broken_format_is_the_worst_score_and_no_way_out():
    good = answered(("19", 0.999))
    truncated = batch.Completion(good.text, good.spans, good.logp, stopped=False)
    assert confidence.score(truncated, PROBLEM) == -1.0 < confidence.score(good, PROBLEM)
    assert confidence.score(written([("18", 0.001)]), PROBLEM) == -1.0
    assert confidence.score(batch.Completion("", (), ()), PROBLEM) == -1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 2])
def test_non_finite_log_prob_raises(bad, index):
    good = answered(("18", 0.5))
    logp = tuple(bad if i == index else value for i, value in enumerate(good.logp))
    for text in (good.text, "x" * len(good.text)):
        with pytest.raises(ValueError, match=f"token {index} is {bad}"):
            confidence.score(batch.Completion(text, good.spans, logp), PROBLEM)


def test_rounding_above_one_is_one():
    good = answered(("18", 1.0))
    logp = tuple(1e-6 for _ in good.logp)
    assert confidence.score(batch.Completion(good.text, good.spans, logp), PROBLEM) == 1.0


def test_missing_tokens_raise():
    text = answered(("18", 1.0)).text
    with pytest.raises(ValueError, match="no token covers the answer '18'"):
        confidence.score(batch.Completion(text, (), ()), PROBLEM)
    with pytest.raises(ValueError, match="1 log-probs for 2 tokens"):
        confidence.score(batch.Completion(text, ((0, 1), (1, 2)), (0.0,)), PROBLEM)
