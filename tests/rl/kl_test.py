import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.rl import kl

LOGP_BT, REF_BT = [[-1.0, -2.0, -0.5]], [[-1.2, -1.5, -0.5]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("k1", [0.2, -0.5, 0.0]),
        ("k2", [0.02, 0.125, 0.0]),
        ("k3", [0.01873076, 0.14872122, 0.0]),  # Tunix 0.1.7, compute_kl_divergence(..., "low_var_kl")
        ("k3_k2", [0.01873076, 0.14872122, 0.0]),
    ],
)
def test_values(name, expected):
    tolerance.assert_close(kl.ESTIMATORS[name](jnp.array(LOGP_BT), jnp.array(REF_BT)), np.float32([expected]))


def enumerated(name, logit_V, ref_V):
    """Expectations, summed over the whole vocabulary, of the estimate and of its gradient with respect to logits."""
    probability_V = jax.nn.softmax(logit_V)

    def mean(logit_V):
        estimate_BT = kl.ESTIMATORS[name](jax.nn.log_softmax(logit_V)[None, :], ref_V[None, :])
        return (probability_V * estimate_BT[0]).sum()  # sampled before: the probabilities are no function of the logits

    return jax.value_and_grad(mean)(logit_V)


def divergence(left_V, right_V):
    """KL(left || right) of log-probabilities."""
    return (jnp.exp(left_V) * (left_V - right_V)).sum()


@pytest.mark.parametrize(
    ("name", "direction"), [("k1", "nowhere"), ("k2", "to_ref"), ("k3", "from_ref"), ("k3_k2", "to_ref")]
)
def test_expected_gradients_by_enumeration(name, direction):
    """An 11-token vocabulary in float64; the two directions differ by far more than the tolerance."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):  # noqa: FBT003
        logit_V, ref_V = jnp.asarray(rng.normal(size=11)), jax.nn.log_softmax(jnp.asarray(rng.normal(size=11)))
        to_ref = jax.grad(lambda x: divergence(jax.nn.log_softmax(x), ref_V))(logit_V)
        from_ref = jax.grad(lambda x: divergence(ref_V, jax.nn.log_softmax(x)))(logit_V)
        expected = {"nowhere": jnp.zeros(11), "to_ref": to_ref, "from_ref": from_ref}[direction]
        value, found = enumerated(name, logit_V, ref_V)
        assert found.dtype == jnp.float64
        tolerance.assert_close(found, expected)
        assert float(jnp.abs(to_ref - from_ref).max()) > 0.05
        if name != "k2":  # the one with a bias
            tolerance.assert_close(value, divergence(jax.nn.log_softmax(logit_V), ref_V))


def test_huge_differences_stay_finite():
    far = jnp.full((1, 1), 500.0)
    for estimate in kl.ESTIMATORS.values():
        value, gradient = jax.value_and_grad(lambda x, estimate=estimate: estimate(x, far).sum())(-far)
        assert np.isfinite(float(value)) and np.isfinite(float(gradient[0, 0]))
