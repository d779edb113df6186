"""A gate keeps what did not get worse, gives up what did, and says so."""

import pytest

import tolerance
from thinkfirst.rl import gate


def row(label, strict, *, lenient=None, is_open=()):
    return {
        "stage": label,
        "by_problem": [
            {"id": str(i), "open": i in is_open, "strict": value, "lenient": (lenient or strict)[i]}
            for i, value in enumerate(strict)
        ],
    }


def decided(before, after, *metrics, level=0.05):
    """The verdict, and what it says of each metric."""
    found = gate.decide(before, after, metrics=metrics or ("score",), level=level)
    return found, found["metrics"]


def test_a_fall_of_many_problems_is_given_up():
    verdict, found = decided(row("a", [1.0] * 20), row("b", [1.0] * 12 + [0.0] * 8))
    assert not verdict["kept"]
    score = found["score"]
    assert score["p_worse"] == 2**-8
    tolerance.assert_close([score["mean_before"], score["mean_after"], score["difference"]], [1.0, 0.6, -0.4])
    first, second = gate.lines("gate", verdict)
    assert first == "gate: given up, back to a" and "score 1.000 -> 0.600 on 20 problems" in second


def test_a_fall_that_chance_can_explain_is_kept():
    """Five fell and three rose: of 256 signs 56 + 28 + 8 + 1 have five or more that fell."""
    verdict, found = decided(row("a", [1.0] * 5 + [0.0] * 3), row("b", [0.0] * 5 + [1.0] * 3))
    assert verdict["kept"] and found["score"]["difference"] == -0.25
    assert found["score"]["p_worse"] == 93 / 256
    assert gate.lines("gate", verdict)[0] == "gate: kept"


def test_pairs_tell_what_means_cannot():
    """The same two means: on the same problems a fall of each by .1 is no chance, shuffled it is."""
    before = [i / 20 for i in range(20)]
    shuffled = [before[(7 * i) % 20] - 0.05 for i in range(20)]
    assert not decided(row("a", before), row("b", [value - 0.05 for value in before]))[0]["kept"]
    assert decided(row("a", before), row("b", shuffled))[0]["kept"]


def test_four_problems_condemn_nothing():
    assert decided(row("a", [1.0] * 4), row("b", [0.0] * 4))[0]["kept"]


def test_metrics():
    before = row("a", [1.0, 0.0, 0.9], lenient=[1.0, 1.0, 0.9], is_open=(2,))
    after = row("b", [0.0, 0.0, 0.1], lenient=[1.0, 0.0, 0.1], is_open=(2,))
    found = decided(before, after, "score", "strict", "accuracy")[1]
    means = {metric: compared["mean_after"] for metric, compared in found.items()}
    tolerance.assert_close([means["score"], means["strict"], means["accuracy"]], [0.1 / 3, 0.0, 0.5])
    assert found["strict"]["problems"] == 2


def test_what_open_domains_gain_does_not_pay_for_answers_that_are_wrong():
    """Ten right answers fewer, and twenty poems better: the score rose, and the stage is given up."""
    poems = range(10, 30)
    before, after = row("a", [1.0] * 10 + [0.0] * 20, is_open=poems), row("b", [0.0] * 10 + [1.0] * 20, is_open=poems)
    assert decided(before, after, "score")[0]["kept"]
    verdict, found = decided(before, after, "score", "accuracy")
    assert not verdict["kept"]
    assert found["score"]["difference"] > 0 and found["accuracy"]["p_worse"] == 2**-10


def test_metrics_share_the_level():
    """Of six problems five fell: 1/64 + 6/64 = .109.  A level of .2 gives it up, its half does not."""
    before, after = row("a", [1.0] * 5 + [0.0]), row("b", [0.0] * 5 + [1.0])
    assert not decided(before, after, "accuracy", level=0.2)[0]["kept"]
    verdict, found = decided(before, after, "score", "accuracy", level=0.2)
    assert verdict["kept"] and found["accuracy"]["limit"] == 0.1


def test_a_metric_that_no_problem_is_known_by_is_left_out():
    """Only poems: the accuracy says nothing, and takes no share of the level."""
    poems = (0, 1)
    found = decided(row("a", [1.0, 0.5], is_open=poems), row("b", [1.0, 0.5], is_open=poems), "score", "accuracy")[1]
    assert set(found) == {"score"} and found["score"]["limit"] == 0.05


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="no held-out problem has a score or strict in both 'a' and 'b'"):
        decided(row("a", [None]), row("b", [None]), "score", "strict")
