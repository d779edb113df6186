import pytest

import tolerance
from thinkfirst.rl import batch, evaluate


def marked(text, answer="18", stopped=True):
    spans = tuple((i, i + 1) for i in range(len(text)))
    completion = batch.Completion(text, spans, (-0.1,) * len(text), stopped)
    found = evaluate.mark(batch.Problem("id", "Q", answer), completion)
    return found.right, found.right_strictly, found.well_formed


GOOD = "<reasoning>Step 1: 9+9=18.</reasoning><answer>18</answer>"


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
def test_strict_and_lenient(text, expected):
    assert marked(text) == expected


def test_truncated_text_is_not_well_formed():
    assert marked(GOOD, stopped=False) == (True, False, False)


def test_interval_worked_by_hand():
    """Scores 0 0 1 1: mean .5, standard deviation .577, half width 1.96 * .577 / 2 = .566, cut at 0 and 1."""
    assert evaluate.interval([0.0, 0.0, 1.0, 1.0]) == (0.0, 1.0)
    low, high = evaluate.interval([0.4, 0.5, 0.5, 0.6])
    tolerance.assert_close([low, high], [0.41998, 0.58002], slack=1e8)  # four digits are given
    assert evaluate.interval([1.0]) == (0.0, 1.0)
