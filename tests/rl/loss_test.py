import jax
import jax.numpy as jnp
import numpy as np

import tolerance
from thinkfirst.rl import loss

RATIO_BT = np.float32([[1.0, 2.0, 0.5], [1.0, 2.0, 0.5]])
ADVANTAGE_BT = np.float32([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])


def log_ratio():
    return jnp.log(RATIO_BT)


def test_clipped_worked_by_hand():
    """ratios 1, 2, .5 with A = 1 and then A = -1, clips .2 and .3."""
    found = loss.clipped(log_ratio(), jnp.asarray(ADVANTAGE_BT), clip_low=0.2, clip_high=0.3)
    tolerance.assert_close(found.loss_BT, np.float32([[-1.0, -1.3, -0.5], [1.0, 2.0, 0.8]]))
    assert found.low_BT.tolist() == [[False, False, False], [False, False, True]]
    assert found.high_BT.tolist() == [[False, True, False], [False, False, False]]


def test_dual_clip_worked_by_hand():
    """c = 1.5: only the token with A = -1 and ratio 2 had more to lose."""
    found = loss.clipped(log_ratio(), jnp.asarray(ADVANTAGE_BT), clip_low=0.2, clip_high=0.3, dual_clip=1.5)
    tolerance.assert_close(found.loss_BT, np.float32([[-1.0, -1.3, -0.5], [1.0, 1.5, 0.8]]))


def test_clipped_tokens_have_no_gradient_and_on_policy_ones_have_minus_the_advantage():
    def total(log_ratio_BT):
        return loss.clipped(log_ratio_BT, jnp.full((1, 2), 2.0), clip_low=0.2, clip_high=0.2).loss_BT.sum()

    tolerance.assert_close(jax.grad(total)(jnp.array([[0.0, 1.0]])), np.float32([[-2.0, 0.0]]))


def test_capped_worked_by_hand():
    """CISPO: log-probs -1, cap 1.5; the gradient is -min(r, cap) A even where the cap holds."""
    logp_BT = jnp.full((2, 3), -1.0)
    old_logp_BT = logp_BT - log_ratio()

    def total(logp_BT):
        return loss.capped(logp_BT, old_logp_BT, jnp.asarray(ADVANTAGE_BT), cap=1.5).loss_BT.sum()

    found = loss.capped(logp_BT, old_logp_BT, jnp.asarray(ADVANTAGE_BT), cap=1.5)
    tolerance.assert_close(found.loss_BT, np.float32([[1.0, 1.5, 0.5], [-1.0, -1.5, -0.5]]))
    tolerance.assert_close(jax.grad(total)(logp_BT), np.float32([[-1.0, -1.5, -0.5], [1.0, 1.5, 0.5]]))
    assert found.high_BT.tolist() == [[False, True, False], [False, False, False]]
    assert not found.low_BT.any()


def test_gated_worked_by_hand():
    """SAPO: on policy 4 / tau * 1/2 = 2 / tau; tau 1 for A > 0 and 2 for A < 0; sigmoid(1) = .7310586."""
    found = loss.gated(log_ratio(), jnp.asarray(ADVANTAGE_BT), tau_positive=1.0, tau_negative=2.0)
    positive = [-2.0, -4 * 0.7310586, -4 * 0.3775407]
    negative = [1.0, 2 * 0.8807970, 2 * 0.2689414]
    tolerance.assert_close(found.loss_BT, np.float32([positive, negative]))


def test_gated_has_the_gradient_of_ppo_on_policy():
    def total(log_ratio_BT):
        advantage_BT = jnp.asarray(ADVANTAGE_BT[:, :1])
        return loss.gated(log_ratio_BT, advantage_BT, tau_positive=1.0, tau_negative=2.0).loss_BT.sum()

    tolerance.assert_close(jax.grad(total)(jnp.zeros((2, 1))), np.float32([[-1.0], [1.0]]))


def test_sums_are_those_of_the_samples_wherever_they_stand():
    sample_BT = jnp.array([[3, 3, 7, 0], [0, 1, 2, 1]])
    value_BT = jnp.array([[1.0, 2.0, 4.0, jnp.nan], [jnp.nan, 1.0, 2.0, 4.0]])
    tolerance.assert_close(loss.sample_sum(value_BT, sample_BT), np.float32([[3, 3, 4, 0], [0, 5, 2, 5]]))
    tolerance.assert_close(loss.sample_count(sample_BT), np.float32([[2, 2, 1, 1], [1, 2, 1, 2]]))
    gradient = jax.grad(lambda x: (loss.sample_sum(x, sample_BT) ** 2).sum())(value_BT)
    tolerance.assert_close(gradient, np.float32([[12, 12, 8, 0], [0, 20, 4, 20]]))  # 2 n_i times the sum


def test_log_ratios_of_sequences_worked_by_hand():
    """d = .1 .2 of one sample, .9 of none, .5 of the next: means .15 and .5; gradients of 1/2, or 1 of its own."""
    logp_BT, old_logp_BT = jnp.array([[-1.0, -2.0, -3.0, -1.0]]), jnp.array([[-1.1, -2.2, -3.9, -1.5]])
    sample_BT = jnp.array([[1, 1, 0, 2]])
    whole = loss.sequence_log_ratio(logp_BT, old_logp_BT, sample_BT)
    each = loss.sequence_token_log_ratio(logp_BT, old_logp_BT, sample_BT)
    tolerance.assert_close(whole, np.float32([[0.15, 0.15, 0.0, 0.5]]))
    tolerance.assert_close(each, whole)
    first = lambda ratio: jax.grad(lambda x: ratio(x, old_logp_BT, sample_BT)[0, 0])(logp_BT)  # noqa: E731
    tolerance.assert_close(first(loss.sequence_log_ratio), np.float32([[0.5, 0.5, 0.0, 0.0]]))
    tolerance.assert_close(first(loss.sequence_token_log_ratio), np.float32([[1.0, 0.0, 0.0, 0.0]]))


def test_a_row_without_samples_has_ratio_one():
    nothing = jnp.zeros((1, 2), jnp.int32)
    tolerance.assert_close(loss.sequence_log_ratio(jnp.ones((1, 2)), jnp.zeros((1, 2)), nothing), np.zeros((1, 2), "f"))


def test_huge_ratios_stay_finite():
    far, zero, one = jnp.full((1, 1), 500.0), jnp.zeros((1, 1)), jnp.ones((1, 1), jnp.int32)

    def total(x):
        ratios = (loss.token_log_ratio(x, zero), loss.sequence_log_ratio(x, zero, one))
        clipped = [loss.clipped(d, jnp.array([[-1.0]]), clip_low=0.2, clip_high=0.2).loss_BT.sum() for d in ratios]
        gated = loss.gated(ratios[0], jnp.array([[-1.0]]), tau_positive=1.0, tau_negative=1.0).loss_BT.sum()
        return sum(clipped) + gated + loss.capped(x, zero, jnp.array([[-1.0]]), cap=5.0).loss_BT.sum()

    assert np.isfinite(np.asarray(jax.grad(total)(far))).all()


def test_weights_come_from_the_samples_and_the_totals_alone():
    """Three samples, two of them in one row, of a batch that has four samples and eight tokens; one row is empty."""
    sample_BT = jnp.array([[1, 1, 4], [2, 0, 0], [0, 0, 0]])
    on_BT = np.float32(sample_BT > 0)
    tolerance.assert_close(
        loss.sequence_mean_weight(sample_BT, 4), np.float32([[0.125, 0.125, 0.25], [0.25, 0, 0], [0, 0, 0]])
    )
    tolerance.assert_close(loss.token_mean_weight(sample_BT, jnp.float32(8.0)), on_BT / 8)
    tolerance.assert_close(loss.constant_weight(sample_BT, 4, 3), on_BT / 12)


def test_a_batch_without_tokens_weighs_nothing():
    empty = jnp.zeros((2, 2), jnp.int32)
    for weight_BT in (loss.sequence_mean_weight(empty, 2), loss.token_mean_weight(empty, jnp.float32(0.0))):
        tolerance.assert_close(weight_BT, np.zeros((2, 2), "f"))
