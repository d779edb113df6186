"""Estimates against numbers worked by hand, enumeration, and what they must not depend on."""

import itertools
import math

import pytest

import tolerance
from thinkfirst.rl import estimates


def test_pass_at_k_by_hand():
    """2 of 4 right: two samples are both wrong in 1 of 6 pairs."""
    tolerance.assert_close(estimates.pass_at(2, 4, 1), 0.5)
    tolerance.assert_close(estimates.pass_at(2, 4, 2), 5 / 6)
    assert estimates.pass_at(2, 4, 3) == 1.0
    assert estimates.pass_at(0, 4, 4) == 0.0
    with pytest.raises(ValueError, match="pass@5 of 2 right among 4"):
        estimates.pass_at(2, 4, 5)


@pytest.mark.parametrize(("right", "n", "k"), [(1, 5, 2), (3, 6, 3), (5, 7, 2)])
def test_pass_at_k_is_the_mean_over_all_choices(right, n, k):
    rows = [1] * right + [0] * (n - right)
    choices = list(itertools.combinations(rows, k))
    tolerance.assert_close(estimates.pass_at(right, n, k), sum(map(max, choices)) / len(choices))


def test_majority_by_hand():
    votes, scores = [7, 7, 8, None], [1.0, 1.0, 0.0, 0.0]
    assert estimates.maj_at(votes, scores, 4) == 1.0
    tolerance.assert_close(estimates.maj_at(votes, scores, 1), 0.5)
    # pairs: 77, 78 twice (a tie: half), 7- twice, 8-: (1 + 1/2 + 1/2 + 1 + 1 + 0) / 6
    tolerance.assert_close(estimates.maj_at(votes, scores, 2), 4 / 6)
    assert estimates.maj_at([None, None], [0.0, 0.0], 2) == 0.0


def test_majority_of_many_is_drawn_and_always_the_same():
    votes, scores = [i % 3 for i in range(16)], [float(i % 3 == 0) for i in range(16)]
    assert math.comb(16, 8) > estimates.MAX_CHOICES
    assert estimates.maj_at(votes, scores, 8) == estimates.maj_at(votes, scores, 8)
    assert estimates.maj_at(votes, scores, 16) == 1.0  # six votes of sixteen


def test_wilson_against_its_published_example():
    """0 of 10 and 8 of 10: Agresti and Coull (1998) give 0 to .278 and .490 to .943."""
    low, high = estimates.wilson(0.0, 10)
    assert low == 0 and high == pytest.approx(0.278, abs=5e-4)
    assert estimates.wilson(0.8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)
    assert estimates.wilson(0.5, 0) == (0.0, 1.0)


def test_sign_flips_by_enumeration():
    """Of the 8 signs of 3, 2, 1 only two give a sum of -4 or less: -3-2-1 and -3-2+1."""
    assert estimates.sign_flip([-3.0, -2.0, 1.0]) == 2 / 8
    assert estimates.sign_flip([1.0, 1.0, 1.0]) == 1.0
    assert estimates.sign_flip([0.0, 0.0]) == 1.0
    assert estimates.sign_flip([-1.0] * 4) == 1 / 16


def test_drawn_sign_flips_agree_with_the_normal_distribution():
    """100 of +-1 with mean -.2 are two deviations low: 2.8 % with the correction for steps of 2."""
    change = [-1.0] * 60 + [1.0] * 40
    assert estimates.sign_flip(change) == pytest.approx(0.0284, abs=0.005)
    assert estimates.sign_flip([-1.0] * 50) == pytest.approx(1 / 20001)


def test_bootstrap_of_a_known_spread():
    """The mean of 200 values of deviation 1 is known to 1.96 / sqrt(200) = .139."""
    values = [(-1.0) ** i for i in range(200)]
    low, high = estimates.bootstrap(values)
    assert low == pytest.approx(-0.139, abs=0.01) and high == pytest.approx(0.139, abs=0.01)
    assert estimates.bootstrap([0.3, 0.3]) == pytest.approx((0.3, 0.3))


def test_calibration_by_hand():
    """Two bins: sure .95 twice and right once, |.95 - .5| * 2; sure .25 once and wrong, .25; over three."""
    found = estimates.calibration_error([0.95, 0.95, 0.25], [1.0, 0.0, 0.0])
    tolerance.assert_close(found, (0.9 + 0.25) / 3)
    assert estimates.calibration_error([], []) is None
    assert estimates.calibration_error([1.0], [1.0]) == 0.0


def test_powers_of_two():
    assert estimates.powers_of_two(1) == [1]
    assert estimates.powers_of_two(4) == [1, 2, 4]
    assert estimates.powers_of_two(6) == [1, 2, 4, 6]
