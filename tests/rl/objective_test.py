import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.core import config as config_lib
from thinkfirst.rl import entropy, objective

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "grpo_case.npz"


def case():
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file}


def tokens(arrays, rows=slice(None), floor=-np.inf):
    """The golden case's rows; entropies are made up, and so is a sampler that is a little off."""
    rng = np.random.default_rng(0)
    entropy_BT, noise_BT = rng.uniform(size=(8, 7)), 0.5 * rng.normal(size=(8, 7))
    field = lambda x: jnp.asarray(np.asarray(x, np.float32)[rows])  # noqa: E731
    return objective.Tokens(
        logp_BT=field(arrays["lp"]),
        entropy_BT=field(entropy_BT),
        old_logp_BT=field(arrays["old"]),
        sampler_logp_BT=field(arrays["old"] + noise_BT),
        ref_logp_BT=field(arrays["ref"]),
        advantage_BT=field(np.repeat(arrays["adv"][:, None], 7, axis=1)),
        sample_BT=jnp.asarray(np.where(arrays["mask"] > 0, np.arange(1, 9)[:, None], 0)[rows]),
        entropy_floor=jnp.float32(floor),
    )


def totals():
    return objective.Totals(num_samples=8, num_tokens=jnp.float32(35.0))


def value(arrays=None, rows=slice(None), floor=-np.inf, **settings):
    settings = {"clip_low": 0.2, "clip_high": 0.28, "max_tokens": 7, **settings}
    of = objective.make(objective.LossConfig(**settings))
    return of(tokens(case() if arrays is None else arrays, rows, floor), totals())[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # TRL's own loss (beta .04), and with beta 0 those of verl.
        ({"objective": "grpo", "beta": 0.04}, 0.1434837),
        ({"objective": "grpo", "beta": 0.0}, 0.1404638),
        ({"objective": "bnpo", "beta": 0.04}, 0.1747669),
        ({"objective": "dapo", "beta": 0.04}, 0.1747669),
        ({"objective": "dapo", "beta": 0.0}, 0.1729548),
        ({"objective": "dr_grpo", "beta": 0.04}, 0.1092293),
        ({"objective": "gspo", "beta": 0.04}, 0.1084274),
        ({"objective": "gspo", "beta": 0.0}, 0.1054075),
        ({"objective": "cispo", "beta": 0.04}, -0.4390552),
        ({"objective": "sapo", "beta": 0.04}, 0.0766187),
        ({"objective": "sapo", "beta": 0.0}, 0.0735989),
        # Tunix 0.1.7, grpo_loss_fn: gspo-token, its default KL, mse_kl, epsilon_c.
        ({"objective": "gspo_token", "beta": 0.04}, 0.1084274),
        ({"objective": "gspo_token", "beta": 0.04, "average": "token"}, 0.1311004),
        ({"objective": "grpo", "beta": 0.04, "kl": "k1"}, 0.1392698),
        ({"objective": "grpo", "beta": 0.04, "kl": "k1", "average": "token"}, 0.1749051),
        ({"objective": "grpo", "beta": 0.04, "kl": "k2"}, 0.1432082),
        ({"objective": "dapo", "beta": 0.04, "kl": "k2"}, 0.1747835),
        ({"objective": "grpo", "beta": 0.0, "dual_clip": 1.5}, 0.1188829),
        ({"objective": "dapo", "beta": 0.04, "dual_clip": 1.5}, 0.1538166),
        # k3_k2 has the value of k3.
        ({"objective": "grpo", "beta": 0.04, "kl": "k3_k2"}, 0.1434837),
    ],
)
def test_values_of_trl_verl_and_tunix(settings, expected):
    """B 8, G 4, lengths 1 to 7."""
    np.testing.assert_allclose(float(value(**settings)), expected, atol=2e-7)


EVERYTHING = {"beta": 0.04, "correction": "sequence_truncate", "top_entropy": 0.5, "entropy_bonus": 0.1}


@pytest.mark.parametrize("average", ["own", "sequence", "token", "constant"])
@pytest.mark.parametrize("name", list(objective.OWN_AVERAGE))
def test_micro_batches_add_up(name, average):
    settings = {"objective": name, "average": average, "floor": 0.4, **EVERYTHING}
    cut = [slice(0, 1), slice(1, 5), slice(5, 8)]
    tolerance.assert_close(sum(value(rows=rows, **settings) for rows in cut), value(**settings))


def packed(found, plan, width):
    """The samples of a plan's rows side by side, then columns of NaN that belong to none."""

    def lay_out(x_BT, fill):
        rows = [np.concatenate([np.asarray(x_BT)[i][np.asarray(found.mask_BT)[i]] for i in row]) for row in plan]
        return jnp.stack([jnp.asarray(np.pad(row, (0, width - len(row)), constant_values=fill)) for row in rows])

    named = {name: value for name, value in vars(found).items() if name.endswith("_BT")}
    return found.replace(
        **{name: lay_out(value, 0 if name == "sample_BT" else np.nan) for name, value in named.items()}
    )


@pytest.mark.parametrize("average", ["own", "sequence", "token", "constant"])
@pytest.mark.parametrize("name", list(objective.OWN_AVERAGE))
def test_packing_changes_neither_value_nor_gradient(name, average):
    """Eight samples of 1 to 7 tokens, one a row of 7, and in three rows of 20; NaN wherever there is no sample."""
    of = objective.make(objective.LossConfig(objective=name, average=average, max_tokens=7, **EVERYTHING))
    plan = [[5, 0, 3], [1, 7], [2, 4, 6]]
    one_a_row = tokens(case(), floor=0.4)
    loss_of = jax.value_and_grad(lambda x, found: of(found.replace(logp_BT=x), totals())[0])
    value, grads_BT = loss_of(one_a_row.logp_BT, one_a_row)
    together = packed(one_a_row, plan, 20)
    packed_value, packed_grads_BT = loss_of(together.logp_BT, together)
    tolerance.assert_close(packed_value, value)
    expected_BT = packed(one_a_row.replace(logp_BT=grads_BT), plan, 20).logp_BT
    tolerance.assert_close(packed_grads_BT, jnp.nan_to_num(expected_BT))


def test_the_constant_average_needs_its_divisor():
    """The width of an array would be another number where samples are packed."""
    config = objective.LossConfig(objective="dr_grpo")
    with pytest.raises(ValueError, match="max_tokens, which is 0"):
        objective.make(config)
    assert config.within(7).max_tokens == 7 and objective.LossConfig(max_tokens=5).within(7).max_tokens == 5


@pytest.mark.parametrize("name", list(objective.OWN_AVERAGE))
def test_what_the_mask_hides_cannot_matter(name):
    """Neither to the value nor to the gradient, even if it is not a number."""
    spoiled = case()
    for field in ("lp", "old", "ref"):
        spoiled[field][spoiled["mask"] == 0] = np.nan
    of = objective.make(objective.LossConfig(objective=name, max_tokens=7, **EVERYTHING))

    def result(arrays):
        found = tokens(arrays, floor=0.4)
        return jax.value_and_grad(lambda x: of(found.replace(logp_BT=x), totals())[0])(found.logp_BT)

    for found, expected in zip(result(spoiled), result(case()), strict=True):
        tolerance.assert_close(found, expected)


def worked(**settings):
    """One row of three tokens on policy, A = 2: the surrogate is -2 at every token, each of weight 1/3."""
    ones = jnp.ones((1, 3))
    found = objective.Tokens(
        logp_BT=-ones,
        entropy_BT=jnp.array([[0.1, 0.9, 0.5]]),
        old_logp_BT=-ones,
        sampler_logp_BT=-ones - jnp.log(jnp.array([[0.5, 4.0, 1.0]])),
        ref_logp_BT=-ones - 1.0,
        advantage_BT=2 * ones,
        sample_BT=jnp.ones((1, 3), jnp.int32),
        entropy_floor=jnp.float32(0.5),
    )
    of = objective.make(objective.LossConfig(**settings))
    return of(found, objective.Totals(num_samples=1, num_tokens=jnp.float32(3.0)))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"beta": 0.0}, -2.0),
        ({"beta": 0.5}, -2.0 + 0.5 * np.exp(-1.0)),  # x = 1: k3 = exp(-1) + 1 - 1
        ({"beta": 0.5, "correction": "token_truncate"}, -2.0 * 3.5 / 3 + 0.5 * np.exp(-1.0)),  # weights .5, 2, 1
        ({"beta": 0.5, "correction": "token_mask"}, -2.0 * 1.5 / 3 + 0.5 * np.exp(-1.0)),  # weights .5, 0, 1
        ({"beta": 0.0, "correction": "sequence_truncate", "correction_high": 3.0}, -2.0 * 2.0),  # .5 * 4 * 1
        ({"beta": 0.0, "correction": "sequence_mask", "correction_high": 1.5}, 0.0),
        ({"beta": 0.5, "top_entropy": 0.5}, -2.0 * 2 / 3 + 0.5 * np.exp(-1.0)),  # the first token is kept out
        ({"beta": 0.0, "entropy_bonus": 0.2}, -2.0 - 0.2 * 0.5),
        ({"beta": 0.0, "average": "constant", "max_tokens": 12}, -0.5),
    ],
)
def test_terms_worked_by_hand(settings, expected):
    tolerance.assert_close(worked(**settings)[0], np.float32(expected))


def test_terms_are_those_of_the_loss():
    total, terms = worked(beta=0.5, correction="token_mask")
    tolerance.assert_close((terms.weight_BT * (terms.surrogate_BT + 0.5 * terms.kl_BT)).sum(), total)


def test_the_floor_of_the_whole_batch_keeps_the_share():
    found = tokens(case())
    floor = entropy.top_share_floor(found.entropy_BT, found.mask_BT, share=0.2)
    kept = (found.entropy_BT >= floor) & found.mask_BT
    assert int(kept.sum()) == 7  # a fifth of 35


@pytest.mark.parametrize("name", [name for name in objective.OWN_AVERAGE if name != "gspo"])
def test_a_second_update_on_the_same_samples_sees_the_old_policy(name):
    """mu > 1: on policy every surrogate has gradient -A w; once the policy moved, the stored log-probs bound it.

    The policy here went up by 1 on every token (ratio 2.7): tokens with A > 0 have no gradient left where the loss is
    clipped, and less than ratio times A where it is not.
    """
    found = tokens(case())
    config = objective.LossConfig(objective=name, average="token", beta=0.0, cispo_cap=2.0)
    of = objective.make(config)
    gradient = lambda now: jax.grad(lambda x: of(now.replace(logp_BT=x), totals())[0])(now.logp_BT)  # noqa: E731
    first = gradient(found.replace(old_logp_BT=found.logp_BT))
    pull_BT = jnp.where(found.mask_BT, -found.advantage_BT / 35, 0.0)
    tolerance.assert_close(first, pull_BT)
    second = gradient(found.replace(old_logp_BT=found.logp_BT - 1.0))
    rising = np.asarray(found.mask_BT & (found.advantage_BT > 0))
    share = np.asarray(second)[rising] / np.asarray(pull_BT)[rising]
    if name in ("cispo", "sapo"):
        assert (share > 0).all() and (share <= 2.0 + 1e-6).all()
    else:
        assert (share == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -0.1}, "beta=-0.1"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"clip_low": 1.5}, "clip_low=1.5"),
        ({"clip_high": -0.1}, "clip_high=-0.1"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"cispo_cap": 0.0}, "cispo_cap=0.0"),
        ({"sapo_positive": 0.0}, "sapo_positive=0.0"),
        ({"dual_clip": 1.1}, "dual_clip=1.1 must be 0"),
        ({"dual_clip": 3.0, "objective": "sapo"}, "dual_clip=3.0 bounds clipped losses, and sapo"),
        ({"correction_low": 1.5}, "must contain 1, where nothing differs: 1.5 to 2.0"),
        ({"correction_high": 0.5}, "0.0 to 0.5"),
        ({"entropy_bonus": -1.0}, "entropy_bonus=-1.0"),
        ({"top_entropy": 0.0}, "top_entropy=0.0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        objective.LossConfig(**settings)


@pytest.mark.parametrize(
    ("name", "value"), [("objective", "ppo"), ("average", "mean"), ("kl", "k4"), ("correction", "token")]
)
def test_unknown_names_are_refused(name, value):
    """In tests the annotation would refuse them first: the fields are set behind its back."""
    config = object.__new__(objective.LossConfig)
    vars(config).update({**vars(objective.LossConfig()), name: value})
    with pytest.raises(ValueError, match=f"loss: {name}='{value}' is none of "):
        config.__post_init__()


def test_settings_come_in_any_order():
    """One assignment after the other, as on the command line: no order passes through what is refused."""
    wanted = objective.LossConfig(objective="dr_grpo", max_tokens=64, correction="token_mask", correction_high=3.0)
    assignments = ["objective=dr_grpo", "max_tokens=64", "correction=token_mask", "correction_high=3.0"]
    for order in (assignments, assignments[::-1]):
        assert config_lib.override(objective.LossConfig(), order) == wanted
    assert config_lib.restored(objective.LossConfig(), config_lib.dump(wanted)) == wanted


def test_k1_in_the_loss_warns(caplog):
    with caplog.at_level(logging.WARNING):
        objective.make(objective.LossConfig(kl="k1", beta=0.0))
        objective.make(objective.LossConfig())
        assert not caplog.records
        objective.make(objective.LossConfig(kl="k1", beta=0.08))
    assert "beta=0.08 with kl=k1" in caplog.text
