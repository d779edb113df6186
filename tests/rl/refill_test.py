import numpy as np
import pytest

from thinkfirst.rl import refill

DULL, TELLING = [1.0, 1.0], [0.0, 1.0]


def plan(*groups, tokens=10, wanted=3, token_budget=1000, most=4, **kwargs):
    reward_PG = np.array(groups, float).reshape(-1, 2)
    num_tokens_P = np.full(len(reward_PG), tokens)
    return refill.plan(reward_PG, num_tokens_P, wanted=wanted, token_budget=token_budget, most=most, **kwargs)


def test_first_comes_a_whole_batch():
    assert plan() == refill.Plan(keep=(), draw=3, short=False)
    assert plan(wanted=9) == refill.Plan(keep=(), draw=4, short=False)


def test_enough_telling_groups_end_the_drawing_oldest_first():
    found = plan(DULL, TELLING, TELLING, DULL, TELLING, TELLING)
    assert found == refill.Plan(keep=(1, 2, 4), draw=0, short=False)


def test_the_gap_is_filled_at_the_share_seen_so_far():
    """1 of 3 told something: (1 + 1) / (3 + 2) = .4; two are missing: 2 / .4 = 5, at most `most`."""
    assert plan(DULL, TELLING, DULL, most=16) == refill.Plan(keep=(1,), draw=5, short=False)
    assert plan(DULL, TELLING, DULL, most=4).draw == 4


def test_without_any_telling_group_drawing_goes_on_until_the_budget():
    assert plan(DULL, DULL, most=100).draw == 12  # share 1 / 4, three missing
    assert plan(DULL, DULL, most=100, token_budget=75).draw == 5  # 20 spent, 10 a group: 55 pay for five


def test_the_budget_ends_the_drawing_short():
    assert plan(TELLING, DULL, token_budget=29) == refill.Plan(keep=(0,), draw=0, short=True)
    assert plan(TELLING, DULL, token_budget=30).draw == 1
    assert plan(TELLING, DULL, token_budget=5).short


def test_small_differences_of_rewards_tell_something():
    assert plan([0.3, 0.3 + 1e-9], wanted=1).keep == (0,)
    assert plan([0.1, 0.1], wanted=1).keep == ()


def test_unknown_rewards_tell_nothing():
    known_PG = np.array([[True, False], [True, True]])
    assert plan(TELLING, TELLING, wanted=2, known_PG=known_PG).keep == (1,)


def test_following_the_plan_fills_the_batch_within_the_budget():
    rng = np.random.default_rng(0)
    rewards, tokens = np.zeros((0, 4)), np.zeros(0, int)
    for _ in range(20):
        found = refill.plan(rewards, tokens, wanted=16, token_budget=4000, most=16)
        if not found.draw:
            break
        new = (rng.uniform(size=(found.draw, 4)) < 0.03).astype(float)
        rewards, tokens = np.concatenate([rewards, new]), np.concatenate([tokens, rng.integers(5, 20, found.draw)])
    assert len(found.keep) == 16 and not found.short
    assert tokens.sum() <= 4000
    assert (rewards[list(found.keep)].std(axis=1) > 0).all()


def test_nothing_wanted_is_refused():
    with pytest.raises(ValueError, match="wanted=0"):
        plan(wanted=0)
