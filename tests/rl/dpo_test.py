import jax
import jax.numpy as jnp
import numpy as np

import tolerance
from thinkfirst.rl import dpo


def pairs(chosen, rejected):
    return dpo.Pairs(chosen_P=jnp.asarray(chosen), rejected_P=jnp.asarray(rejected))


def test_loss_worked_by_hand():
    """beta .1: gains 2 and -5, margins .2 and -.5; -log sigmoid: .5981389 and .9740770; mean .7861079."""
    value, margin_P = dpo.loss(
        pairs([-10.0, -9.0], [-12.0, -8.0]), pairs([-11.0, -7.0], [-11.0, -11.0]), beta=0.1, num_pairs=2
    )
    tolerance.assert_close(margin_P, np.float32([0.2, -0.5]))
    tolerance.assert_close(value, np.float32(0.7861079))


def test_a_policy_that_is_the_reference_has_loss_log_two_and_pulls_by_half_beta():
    same = pairs([-3.0], [-4.0])
    grads = jax.grad(lambda policy: dpo.loss(policy, same, beta=0.1, num_pairs=1)[0])(same)
    tolerance.assert_close(dpo.loss(same, same, beta=0.1, num_pairs=1)[0], np.float32(np.log(2)))
    tolerance.assert_close(grads.chosen_P, np.float32([-0.05]))
    tolerance.assert_close(grads.rejected_P, np.float32([0.05]))


def test_micro_batches_add_up():
    rng = np.random.default_rng(0)
    policy, reference = (pairs(*rng.normal(size=(2, 6)).astype(np.float32)) for _ in range(2))
    part = lambda x, rows: jax.tree.map(lambda leaf: leaf[rows], x)  # noqa: E731
    whole, _ = dpo.loss(policy, reference, beta=0.5, num_pairs=6)
    cut = [slice(0, 1), slice(1, 4), slice(4, 6)]
    parts = [dpo.loss(part(policy, rows), part(reference, rows), beta=0.5, num_pairs=6)[0] for rows in cut]
    tolerance.assert_close(sum(parts), whole)


def test_gradient_by_finite_differences():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):  # noqa: FBT003
        policy, reference = (pairs(*rng.normal(size=(2, 5))) for _ in range(2))
        value = lambda chosen_P: dpo.loss(  # noqa: E731
            dpo.Pairs(chosen_P, policy.rejected_P), reference, beta=0.7, num_pairs=5
        )[0]
        step = 1e-6 * np.eye(5)
        differences = [(value(policy.chosen_P + h) - value(policy.chosen_P - h)) / 2e-6 for h in step]
        np.testing.assert_allclose(jax.grad(value)(policy.chosen_P), np.array(differences), atol=1e-9)


def test_log_probs_of_sequences_are_sums_over_the_mask():
    logp_BT = jnp.array([[-1.0, -2.0, np.nan], [-3.0, np.nan, np.nan]])
    mask_BT = jnp.array([[True, True, False], [True, False, False]])
    tolerance.assert_close(dpo.sequence_logp(logp_BT, mask_BT), np.float32([-3.0, -3.0]))


def test_margins_far_apart_stay_finite():
    value, _ = dpo.loss(pairs([-900.0], [0.0]), pairs([0.0], [0.0]), beta=1.0, num_pairs=1)
    tolerance.assert_close(value, np.float32(900.0))
