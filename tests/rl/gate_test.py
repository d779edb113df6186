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


def decided(before, after, metric="score", level=0.05):
    return gate.decide(before, after, metric=metric, level=level)


def test_a_fall_of_many_problems_is_given_up():
    found = decided(row("a", [1.0] * 20), row("b", [1.0] * 12 + [0.0] * 8))
    assert not found["kept"]
    assert found["p_worse"] == 2**-8
    tolerance.assert_close([found["mean_before"], found["mean_after"], found["difference"]], [1.0, 0.6, -0.4])
    assert "score 1.000 -> 0.600 on 20 problems" in gate.line(found) and "given up: back to a" in gate.line(found)


def test_a_fall_that_chance_can_explain_is_kept():
    """Five fell and three rose: of 256 signs 56 + 28 + 8 + 1 have five or more that fell."""
    found = decided(row("a", [1.0] * 5 + [0.0] * 3), row("b", [0.0] * 5 + [1.0] * 3))
    assert found["kept"] and found["difference"] == -0.25
    assert found["p_worse"] == 93 / 256
    assert gate.line(found).endswith("kept")


def test_pairs_tell_what_means_cannot():
    """The same two means: on the same problems a fall of each by .1 is no chance, shuffled it is."""
    before = [i / 20 for i in range(20)]
    shuffled = [before[(7 * i) % 20] - 0.05 for i in range(20)]
    assert not decided(row("a", before), row("b", [value - 0.05 for value in before]))["kept"]
    assert decided(row("a", before), row("b", shuffled))["kept"]


def test_four_problems_condemn_nothing():
    assert decided(row("a", [1.0] * 4), row("b", [0.0] * 4))["kept"]


def test_metrics():
    before = row("a", [1.0, 0.0, 0.9], lenient=[1.0, 1.0, 0.9], is_open=(2,))
    after = row("b", [0.0, 0.0, 0.1], lenient=[1.0, 0.0, 0.1], is_open=(2,))
    means = {metric: decided(before, after, metric)["mean_after"] for metric in ("score", "strict", "accuracy")}
    tolerance.assert_close([means["score"], means["strict"], means["accuracy"]], [0.1 / 3, 0.0, 0.5])
    assert decided(before, after, "strict")["problems"] == 2


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="no held-out problem has a strict in both 'a' and 'b'"):
        decided(row("a", [None]), row("b", [None]), "strict")
