import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.rl import correction

OLD_BT = np.log(np.float32([[0.8, 0.1, 0.3], [0.5, 0.6, 0.9]]))
SAMPLER_BT = np.log(np.float32([[0.2, 0.2, 0.1], [0.5, 0.5, 0.1]]))
SAMPLE_BT = np.array([[1, 1, 0], [2, 2, 3]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [[1, 1, 1], [1, 1, 1]]),
        ("token_truncate", [[1.5, 0.7, 1.5], [1.0, 1.2, 1.5]]),  # ratios 4 .5 3 and 1 1.2 9, within .7 and 1.5
        ("token_mask", [[0, 0, 0], [1.0, 1.2, 0]]),
        # 4 * .5, 1 * 1.2 and 9: one token belongs to no sample, another is one.
        ("sequence_truncate", [[1.5, 1.5, 1.0], [1.2, 1.2, 1.5]]),
        ("sequence_mask", [[0.0, 0.0, 1.0], [1.2, 1.2, 0.0]]),
    ],
)
def test_weights_worked_by_hand(name, expected):
    arrays = [jnp.asarray(x) for x in (OLD_BT, SAMPLER_BT, SAMPLE_BT)]
    tolerance.assert_close(correction.weight(name, *arrays, low=0.7, high=1.5), np.float32(expected))


@pytest.mark.parametrize("name", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_weights_carry_no_gradient_and_stay_finite(name):
    def total(old_BT):
        return correction.weight(name, old_BT, jnp.asarray(SAMPLER_BT), jnp.asarray(SAMPLE_BT), low=0.0, high=1e9).sum()

    for far in (0.0, 400.0):
        value, gradient = jax.value_and_grad(total)(jnp.asarray(OLD_BT) + far)
        assert np.isfinite(float(value))
        assert (np.asarray(gradient) == 0).all()


def test_the_token_correction_is_unbiased_where_nothing_is_cut():
    """Mean over the sampler of w f = mean over the policy of f, by enumeration of five tokens."""
    rng = np.random.default_rng(0)
    old_BT, sampler_BT = (jax.nn.log_softmax(jnp.asarray(rng.normal(size=(1, 5)), jnp.float32)) for _ in range(2))
    value_BT = jnp.arange(5.0)[None, :]
    ratio_BT = correction.token_ratio(old_BT, sampler_BT)
    tolerance.assert_close((jnp.exp(sampler_BT) * ratio_BT * value_BT).sum(), (jnp.exp(old_BT) * value_BT).sum())
