import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.kernels.sample import api, reference


def settings(temperature=1.0, top_k=0, top_p=1.0):
    return {"temperature": jnp.float32(temperature), "top_k": jnp.int32(top_k), "top_p": jnp.float32(top_p)}


def kept(prob, **chosen):
    logp_BV = jnp.log(jnp.asarray([prob], jnp.float32))
    floor_B = reference.truncation_floor(
        logp_BV, jnp.int32(chosen.get("top_k", 0)), jnp.float32(chosen.get("top_p", 1.0))
    )
    return np.asarray(logp_BV >= floor_B[:, None])[0].tolist()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, [True, True, True, True]),
        ({"top_k": 2}, [False, True, False, True]),
        ({"top_k": 9}, [True, True, True, True]),
        ({"top_p": 0.4}, [False, True, False, False]),
        ({"top_p": 0.41}, [False, True, False, True]),
        ({"top_k": 2, "top_p": 0.55}, [False, True, False, False]),  # .4 / (.4 + .3) = .571 reaches .55 alone
        ({"top_k": 2, "top_p": 0.6}, [False, True, False, True]),
    ],
)
def test_kept_sets_by_hand(chosen, expected):
    """Probabilities .1 .4 .2 .3; top-p counts over what top-k left."""
    assert kept([0.1, 0.4, 0.2, 0.3], **chosen) == expected


def test_near_ties_at_the_edge_stay_together():
    """The learner's last bits differ from the sampler's: a cut between equals would fall differently there."""
    assert kept([0.4, 0.2, 0.2, 0.2], top_k=2) == [True, True, True, True]
    assert kept([0.4, 0.300001, 0.3], top_k=2) == [True, True, True]


def test_log_probs_and_frequencies_are_those_of_the_kept_distribution():
    """20,000 draws from .1 .4 .2 .3 with top-k 3: .4 .3 .2 over .9."""
    logit_BV = jnp.tile(jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]])), (20_000, 1))
    key_B = jax.random.split(jax.random.key(0), 20_000)
    token_B, logp_B, _ = reference.sample(logit_BV, key_B, **settings(top_k=3))
    share = np.bincount(np.asarray(token_B), minlength=4) / 20_000
    np.testing.assert_allclose(share, [0, 4 / 9, 2 / 9, 3 / 9], atol=0.012)  # 3.5 standard deviations
    expected = np.log(np.float32([1, 4 / 9, 2 / 9, 3 / 9]))[np.asarray(token_B)]
    tolerance.assert_close(logp_B, expected)


def test_temperature_divides_logits():
    logit_BV = jnp.array([[0.0, 2.0]])
    _, logp_B, _ = reference.sample(logit_BV, jax.random.split(jax.random.key(0), 1), **settings(temperature=0.01))
    tolerance.assert_close(logp_B, np.float32([0.0]))


def test_temperature_zero_is_greedy_with_the_log_prob_of_temperature_one():
    logit_BV = jnp.array([[1.0, 3.0, 2.0]])
    token_B, logp_B, floor_B = reference.sample(
        logit_BV, jax.random.split(jax.random.key(0), 1), **settings(temperature=0.0, top_k=1)
    )
    assert token_B.tolist() == [1]
    tolerance.assert_close(logp_B, jax.nn.log_softmax(logit_BV)[:, 1])
    assert np.isneginf(np.asarray(floor_B)).all()


def test_a_row_depends_on_its_key_alone():
    logit_BV = jnp.zeros((4, 50))
    key_B = jax.random.split(jax.random.key(3), 4)
    forward = reference.sample(logit_BV, key_B, **settings())[0]
    backward = reference.sample(logit_BV, key_B[::-1], **settings())[0]
    assert forward.tolist() == backward.tolist()[::-1]
    assert len(set(forward.tolist())) > 1


def test_final_soft_cap_is_applied():
    hidden, table = jnp.array([[10.0]]), jnp.array([[1.0], [0.0]])
    key_B = jax.random.split(jax.random.key(0), 1)
    _, logp_B, _ = api.sample(hidden, table, key_B, **settings(temperature=0.0), soft_cap=1.0)
    tolerance.assert_close(logp_B, np.float32([-np.log1p(np.exp(-np.tanh(10.0)))]))
