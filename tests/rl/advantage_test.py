import numpy as np
import pytest

import tolerance
from thinkfirst.rl import advantage


def test_numbers_worked_by_hand():
    # mean 2, deviations -2 0 2, ddof 1: std 2.
    tolerance.assert_close(advantage.group_relative(np.array([[0.0, 2.0, 4.0]])), np.float32([[-1.0, 0.0, 1.0]]))


def test_tunix_values():
    """tunix 0.1.7, algo_core.compute_advantages(rewards, 4)."""
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.5, 1.0, 3.0]])
    expected = [[0.8660239, -0.8660239, -0.8660239, 0.8660239], [-0.85552716, -0.47529286, -0.09505858, 1.4258786]]
    tolerance.assert_close(advantage.group_relative(rewards), np.float32(expected))


def test_trl_values():
    """The golden case's advantages are TRL's: epsilon 1e-4."""
    case = np.load(f"{__file__.rsplit('/', 2)[0]}/golden/grpo_case.npz")
    found = advantage.group_relative(case["rew"].reshape(2, 4), epsilon=1e-4).reshape(-1)
    tolerance.assert_close(found, case["adv"])


def test_equal_rewards_give_exactly_zero():
    """0.1 three times has a mean that is not 0.1 in floats: rounding must not become an advantage of 1."""
    found = advantage.group_relative(np.full((3, 3), 0.1))
    assert (found == 0).all()
    assert advantage.has_no_signal(np.array([[0.1, 0.1], [0.1, 0.2]])).tolist() == [True, False]


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="G must be at least 2"):
        advantage.group_relative(np.ones((4, 1)))


def test_a_reward_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match=r"\[1, 0\]"):
        advantage.group_relative(np.array([[0.0, 1.0], [np.nan, 1.0]]))


REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.5, 1.0, 3.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # group 2: mean 1.125, squared deviations 5.1875 in all.  Group 1: mean .5, 1 in all.
        ("grpo", [[0.8660239, -0.8660239, -0.8660239, 0.8660239], [-0.8555272, -0.4752929, -0.0950586, 1.4258786]]),
        ("grpo_ddof0", [[0.999998, -0.999998, -0.999998, 0.999998], [-0.9878774, -0.5488208, -0.1097642, 1.6464623]]),
        # Tunix 0.1.7, compute_drgrpo_advantages and compute_rloo_advantages.
        ("dr_grpo", [[0.5, -0.5, -0.5, 0.5], [-1.125, -0.625, -0.125, 1.875]]),
        ("rloo", [[0.6666667, -0.6666667, -0.6666667, 0.6666667], [-1.5, -0.8333333, -0.1666667, 2.5]]),
        # All eight: mean .8125, squared deviations 6.96875 in all, over 7: std .9977653.
        ("batch_std", [[0.5011189, -0.5011189, -0.5011189, 0.5011189], [-1.1275176, -0.6263987, -0.1252797, 1.879196]]),
    ],
)
def test_every_estimator_has_its_number(name, expected):
    tolerance.assert_close(advantage.ESTIMATORS[name](REWARDS), np.float32(expected))


@pytest.mark.parametrize("name", list(advantage.ESTIMATORS))
def test_unknown_rewards_have_no_part_in_it(name):
    """A group with an unknown reward has the advantages of the group without it, whatever stands in its place."""
    with_unknown = np.array([[0.0, np.nan, 2.0, 4.0], [1.0, 7.0, np.nan, np.nan], [np.nan, 5.0, 3.0, 8.0]])
    known = np.isfinite(with_unknown)
    known[1, 1] = False  # one known reward is left: nothing to compare
    found = advantage.ESTIMATORS[name](with_unknown, known)
    assert (found[~known] == 0).all() and (found[1] == 0).all()
    if name == "batch_std":  # 0 2 4 1 5 3 8: mean 23 / 7
        scale = np.std([0, 2, 4, 1, 5, 3, 8], ddof=1)
        tolerance.assert_close(found[0], np.float32([-2 / scale, 0, 0, 2 / scale]))
    else:
        tolerance.assert_close(found[0, known[0]], advantage.ESTIMATORS[name](np.array([[0.0, 2.0, 4.0]]))[0])
    assert advantage.has_no_signal(with_unknown, known).tolist() == [False, True, False]


@pytest.mark.parametrize("name", list(advantage.ESTIMATORS))
def test_no_estimator_makes_a_signal_of_rounding(name):
    assert (advantage.ESTIMATORS[name](np.array([[0.1] * 3, [0.3] * 3])) == 0).all()


def test_a_group_of_unknown_rewards_has_no_signal():
    nothing = np.zeros((2, 3), bool)
    assert advantage.has_no_signal(np.arange(6.0).reshape(2, 3), nothing).all()
    assert (advantage.group_relative(np.arange(6.0).reshape(2, 3), nothing) == 0).all()


def test_what_stands_for_an_unknown_reward_makes_no_signal():
    """Whether it is above, below or between the known ones."""
    rewards = np.array([[-1.0, 7.0, -1.0], [2.0, -7.0, 2.0], [-1.0, 0.0, 1.0]])
    known = np.array([[True, False, True]] * 3)
    assert advantage.has_no_signal(rewards, known).tolist() == [True, True, False]
    assert advantage.has_no_signal(rewards).tolist() == [False, False, False]


def test_a_known_reward_that_is_not_finite_is_named_by_every_estimator():
    for estimate in advantage.ESTIMATORS.values():
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            estimate(np.array([[0.0, np.inf], [0.0, np.nan]]), np.array([[True, True], [True, False]]))
