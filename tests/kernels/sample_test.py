import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import tolerance
from thinkfirst.core import mesh as mesh_lib
from thinkfirst.kernels.sample import api, reference


def settings(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    numbers = {"temperature": temperature, "top_p": top_p, "min_p": min_p}
    return {"top_k": jnp.int32(top_k), **{name: jnp.float32(number) for name, number in numbers.items()}}


def kept(prob, **chosen):
    logp_BV = jnp.log(jnp.asarray([prob], jnp.float32))
    numbers = settings(**chosen)
    floor_B = reference.truncation_floor(logp_BV, numbers["top_k"], numbers["top_p"], numbers["min_p"])
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
        ({"min_p": 0.24}, [True, True, True, True]),  # .24 of .4 is .096
        ({"min_p": 0.26}, [False, True, True, True]),
        ({"min_p": 0.74}, [False, True, False, True]),
        ({"min_p": 1.0}, [False, True, False, False]),
        ({"min_p": 0.49, "top_k": 2}, [False, True, False, True]),
        ({"min_p": 0.76, "top_p": 0.6}, [False, True, False, False]),
        ({"min_p": 0.49, "top_p": 0.3}, [False, True, False, False]),
    ],
)
def test_kept_sets_by_hand(chosen, expected):
    """Probabilities .1 .4 .2 .3; top-p counts over what top-k left, min-p is a share of .4 whatever they left."""
    assert kept([0.1, 0.4, 0.2, 0.3], **chosen) == expected


def test_near_ties_at_the_edge_stay_together():
    """The learner's last bits differ from the sampler's: a cut between equals would fall differently there."""
    assert kept([0.4, 0.2, 0.2, 0.2], top_k=2) == [True, True, True, True]
    assert kept([0.4, 0.300001, 0.3], top_k=2) == [True, True, True]
    assert kept([0.4, 0.300001, 0.299999], min_p=0.75) == [True, True, True]


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


@pytest.mark.parametrize("width", [40, 256, 700])
@pytest.mark.parametrize("chosen", [{"truncated": False}, {}, {"min_p": 0.2}, {"top_k": 60, "top_p": 0.9}])
def test_the_two_step_draw_has_the_probabilities_of_the_words(width, chosen):
    """Chi-square of 20,000 draws over part of a block, one, and three: below its mean + 4 deviations."""
    chosen = dict(chosen)
    flag = chosen.pop("truncated", True)
    logit_V = 1.5 * jax.random.normal(jax.random.key(width), (width,))
    key_B = jax.random.split(jax.random.key(1), 8_000)
    token_B, logp_B, floor_B = jax.jit(reference.sample, static_argnames="truncated")(
        jnp.tile(logit_V, (8_000, 1)), key_B, **settings(0.8, **chosen), truncated=flag
    )
    logp_V = np.asarray(jax.nn.log_softmax(logit_V / 0.8), np.float64)
    kept_V = logp_V >= floor_B[0]
    assert kept_V.all() == (not chosen)
    logp_V = np.where(kept_V, logp_V - np.log(np.exp(logp_V[kept_V]).sum()), -np.inf)
    assert np.abs(np.asarray(logp_B) - logp_V[np.asarray(token_B)]).max() < 1e-5
    count_V, expected_V = np.bincount(np.asarray(token_B), minlength=width), 8_000 * np.exp(logp_V)
    rare_V = expected_V < 5
    count, expected = (np.append(x[~rare_V], x[rare_V].sum()) for x in (count_V, expected_V))
    count, expected = count[expected > 0], expected[expected > 0]
    chi_square, freedom = ((count - expected) ** 2 / expected).sum(), max(1, len(count) - 1)
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_without_truncation_the_tokens_are_those_of_settings_that_keep_all():
    logit_BV = 3 * jax.random.normal(jax.random.key(0), (64, 700))
    key_B = jax.random.split(jax.random.key(1), 64)
    for temperature in (0.7, 0.0):
        with_flag = reference.sample(logit_BV, key_B, **settings(temperature))
        without = reference.sample(logit_BV, key_B, **settings(temperature), truncated=False)
        for actual, expected in zip(without, with_flag, strict=True):
            np.testing.assert_array_equal(actual, expected)
    assert without[0].tolist() == logit_BV.argmax(axis=1).tolist()


def test_rounding_of_logits_changes_no_token():
    """Where the inverse of the distribution function would: 16,384 nearly equal words have as many edges to cross."""
    logit_BV = 0.1 * jax.random.normal(jax.random.key(0), (256, 16_384))
    off_BV = logit_BV + 1e-6 * jax.random.normal(jax.random.key(1), logit_BV.shape)
    key_B = jax.random.split(jax.random.key(2), 256)
    straight, off = (reference.sample(x, key_B, **settings(), truncated=False)[0] for x in (logit_BV, off_BV))
    assert straight.tolist() == off.tolist()


@pytest.mark.parametrize("truncated", [False, True])
def test_rows_with_faults_get_token_zero_and_no_log_prob(truncated):
    """A NaN, nothing but -inf, +inf; the rows beside them are what they are alone.  A forbidden word is no fault."""
    logit_BV = jax.random.normal(jax.random.key(0), (5, 600))
    faulty_BV = logit_BV.at[0, 500].set(jnp.nan).at[1].set(-jnp.inf).at[2, 3].set(jnp.inf).at[3, 1:].set(-jnp.inf)
    key_B = jax.random.split(jax.random.key(1), 5)
    for chosen in (settings(), settings(0.0), settings(top_k=20, top_p=0.9, min_p=0.01)):
        token_B, logp_B, floor_B = reference.sample(faulty_BV, key_B, **chosen, truncated=truncated)
        assert token_B[:4].tolist() == [0, 0, 0, 0]
        assert np.isnan(logp_B[:3]).all()
        assert np.isneginf(floor_B[:3]).all()
        assert logp_B[3] == 0
        alone = reference.sample(logit_BV, key_B, **chosen, truncated=truncated)
        assert (token_B[4], logp_B[4], floor_B[4]) == tuple(x[4] for x in alone)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_shares_of_the_vocabulary_draw_the_same_tokens(shards):
    hidden_key, table_key, row_key = jax.random.split(jax.random.key(0), 3)
    hidden_BD, table_VD = jax.random.normal(hidden_key, (40, 32)), jax.random.normal(table_key, (640, 32)) / 3
    key_B = jax.random.split(row_key, 40)
    mesh = mesh_lib.make(mesh_lib.MeshConfig(data=1, tensor=shards), jax.devices()[:shards])
    whole, share = PartitionSpec(), PartitionSpec("tensor")
    for chosen in (settings(), settings(0.8, top_k=30, top_p=0.9, min_p=0.02)):
        sharded = jax.shard_map(
            lambda *given, chosen=chosen: api.sample(*given, **chosen, axis_name="tensor"),
            mesh=mesh,
            in_specs=(whole, share, whole),
            out_specs=whole,
            check_vma=False,
        )
        token_B, logp_B, floor_B = jax.jit(sharded)(hidden_BD, table_VD, key_B)
        expected = api.sample(hidden_BD, table_VD, key_B, **chosen)
        assert token_B.tolist() == expected[0].tolist()
        tolerance.assert_close(logp_B, expected[1])
        tolerance.assert_close(floor_B, expected[2])


def test_no_sort_is_compiled_and_no_search_unless_asked_for():
    def program(truncated):
        lowered = jax.jit(reference.sample, static_argnames="truncated").lower(
            jnp.zeros((4, 600)), jax.random.split(jax.random.key(0), 4), **settings(), truncated=truncated
        )
        return lowered.compile().as_text()

    assert " sort(" not in program(truncated=True)
    assert " conditional(" in program(truncated=True)
    assert " conditional(" not in program(truncated=False)


def test_final_soft_cap_is_applied():
    hidden, table = jnp.array([[10.0]]), jnp.array([[1.0], [0.0]])
    key_B = jax.random.split(jax.random.key(0), 1)
    _, logp_B, _ = api.sample(hidden, table, key_B, **settings(temperature=0.0), soft_cap=1.0)
    tolerance.assert_close(logp_B, np.float32([-np.log1p(np.exp(-np.tanh(10.0)))]))
