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
