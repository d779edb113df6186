import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.rl import loss

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "grpo_case.npz"


def golden_loss(case, beta, rows=slice(None), num_rows=8):
    arrays = [jnp.asarray(case[name][rows]) for name in ("lp", "old", "ref", "adv")]
    mask_BT = jnp.asarray(case["mask"][rows] > 0)
    clips = {"clip_low": 0.2, "clip_high": 0.28}
    return loss.grpo(*arrays, mask_BT, num_rows=num_rows, beta=beta, **clips)[0]


@pytest.mark.parametrize(("beta", "expected"), [(0.04, 0.1434837), (0.0, 0.1404638)])
def test_values_of_trl_and_tunix(beta, expected):
    """B 8, G 4, lengths 1 to 7: TRL's loss_type "grpo" = Tunix's sequence-mean-token-mean with its low-variance KL."""
    with np.load(GOLDEN) as case:
        np.testing.assert_allclose(float(golden_loss(case, beta)), expected, atol=2e-7)


def test_micro_batches_add_up():
    with np.load(GOLDEN) as case:
        whole = golden_loss(case, 0.04)
        parts = [golden_loss(case, 0.04, slice(i, i + n)) for i, n in ((0, 1), (1, 4), (5, 3))]
    tolerance.assert_close(sum(parts), whole)


def test_surrogate_worked_by_hand():
    """ratios 1, 2, .5 with A = 1 and then A = -1, clips .2 and .3."""
    logp_BT = jnp.log(jnp.array([[1.0, 2.0, 0.5], [1.0, 2.0, 0.5]]))
    value_BT, low_BT, high_BT = loss.clipped_surrogate(
        logp_BT, jnp.zeros((2, 3)), jnp.array([1.0, -1.0]), clip_low=0.2, clip_high=0.3
    )
    tolerance.assert_close(value_BT, np.float32([[-1.0, -1.3, -0.5], [1.0, 2.0, 0.8]]))
    assert low_BT.tolist() == [[False, False, False], [False, False, True]]
    assert high_BT.tolist() == [[False, True, False], [False, False, False]]


def test_clipped_tokens_have_no_gradient_and_on_policy_ones_have_minus_the_advantage():
    def total(logp_BT):
        return loss.clipped_surrogate(logp_BT, jnp.zeros((1, 2)), jnp.array([2.0]), clip_low=0.2, clip_high=0.2)[
            0
        ].sum()

    tolerance.assert_close(jax.grad(total)(jnp.array([[0.0, 1.0]])), np.float32([[-2.0, 0.0]]))


def test_k3_worked_by_hand():
    """Tunix 0.1.7, compute_kl_divergence(..., "low_var_kl")."""
    found = loss.kl_k3(jnp.array([[-1.0, -2.0, -0.5]]), jnp.array([[-1.2, -1.5, -0.5]]))
    tolerance.assert_close(found, np.float32([[0.01873076, 0.14872122, 0.0]]))


def test_huge_ratios_stay_finite():
    far = jnp.full((1, 1), 500.0)
    grad = jax.grad(
        lambda x: loss.clipped_surrogate(x, jnp.zeros((1, 1)), jnp.array([-1.0]), clip_low=0.2, clip_high=0.2)[0].sum()
    )(far)
    assert np.isfinite(np.asarray(grad)).all()
    assert np.isfinite(np.asarray(loss.kl_k3(-far, far))).all()


def test_weights_come_from_the_mask_alone():
    mask_BT = jnp.array([[True, True, False], [True, False, False], [False, False, False]])
    expected = np.float32([[0.25, 0.25, 0], [0.5, 0, 0], [0, 0, 0]])
    tolerance.assert_close(loss.sequence_mean_weight(mask_BT, 2), expected)


def test_what_the_mask_hides_cannot_matter():
    with np.load(GOLDEN) as case:
        spoiled = {name: case[name].copy() for name in case}
        for name in ("lp", "old", "ref"):
            spoiled[name][spoiled["mask"] == 0] = np.nan
        value = golden_loss(spoiled, 0.04)
        tolerance.assert_close(value, golden_loss(case, 0.04))
