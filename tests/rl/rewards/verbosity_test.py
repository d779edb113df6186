"""The length penalty, in tokens."""

import pytest

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import verbosity

PROBLEM = batch.Problem("id", "9 + 9?", "18")


def written(pieces, *, stopped=True):
    spans, begin = [], 0
    for piece in pieces:
        spans.append((begin, begin + len(piece)))
        begin += len(piece)
    return batch.Completion("".join(pieces), tuple(spans), (0.0,) * len(spans), stopped)


def thought(num_tokens, *, piece="a ", stopped=True, after=()):
    middle = [piece] * (num_tokens - 1) + ["b"]
    return written(["<reasoning>", *middle, "</reasoning>", "<answer>", "1", "8", "</answer>", *after], stopped=stopped)


@pytest.mark.parametrize(
    "num_tokens, penalty", [(1, 0), (150, 0), (151, 1 / 150), (225, 0.5), (300, 1), (301, 1), (5000, 1)]
)
def test_by_hand(num_tokens, penalty):
    assert verbosity.score(thought(num_tokens), PROBLEM) == pytest.approx(penalty, rel=1e-12)


def test_tokens_are_counted_not_characters():
    assert verbosity.score(thought(100, piece="considerably longer "), PROBLEM) == 0


def test_free_tokens():
    assert verbosity.score(thought(15), PROBLEM, free_tokens=10) == 0.5
    with pytest.raises(ValueError, match="at least 1, not 0"):
        verbosity.score(thought(15), PROBLEM, free_tokens=0)


def test_breaking_the_format_is_no_escape():
    whole = thought(225)
    for broken in (thought(225, stopped=False), thought(225, after=["!"]), written(["a "] * 231)):
        assert verbosity.score(broken, PROBLEM) > verbosity.score(whole, PROBLEM)


def test_whitespace_inside_the_reasoning_costs():
    pieces = ["<reasoning>", *["\n"] * 299, "a", "</reasoning>", "<answer>", "18", "</answer>"]
    assert verbosity.score(written(pieces), PROBLEM) == 1


@pytest.mark.parametrize("place", [0, 5, 8, 10])
def test_invisible_tokens_cost_wherever_they_stand(place):
    pieces = ["<reasoning>", *["a"] * 6, "</reasoning>", "<answer>", "18", "</answer>"]
    assert verbosity.num_reasoning_tokens(written(pieces[:place] + [""] * 20 + pieces[place:])) == 26


def test_a_token_across_the_border_counts():
    assert verbosity.num_reasoning_tokens(written(["<reasoning>a", "b</", "reasoning><answer>18</answer>"])) == 2
