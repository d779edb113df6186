"""Values and gradients in float64, against the equations written once more in NumPy and differentiated numerically."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.rl import objective

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "grpo_case.npz"
LOW, HIGH, BETA, BONUS, FLOOR = 0.2, 0.28, 0.3, 0.05, 0.3


def case():
    rng = np.random.default_rng(0)
    with np.load(GOLDEN) as file:
        arrays = {name: file[name].astype(np.float64) for name in ("lp", "old", "ref", "adv", "mask")}
    return {**arrays, "entropy": rng.uniform(size=(8, 7)), "sampler": arrays["old"] + 0.4 * rng.normal(size=(8, 7))}


def oracle(logp, held, arrays, config):
    """The loss at `logp`, with what must not be differentiated taken from `held`."""
    mask, count = arrays["mask"], arrays["mask"].sum(axis=1, keepdims=True)
    a = arrays["adv"][:, None]
    d = logp - arrays["old"]
    if config.objective in ("gspo", "gspo_token"):
        moving = d if config.objective == "gspo" else held - arrays["old"]
        d = (moving * mask).sum(axis=1, keepdims=True) / count + (0 if config.objective == "gspo" else logp - held)
    r = np.exp(d)
    if config.objective == "cispo":
        policy = -np.minimum(np.exp(held - arrays["old"]), config.cispo_cap) * a * logp
    elif config.objective == "sapo":
        tau = np.where(a > 0, config.sapo_positive, config.sapo_negative)
        policy = -4 / tau / (1 + np.exp(-tau * (r - 1))) * a
    else:
        policy = np.maximum(-r * a, -np.clip(r, 1 - LOW, 1 + HIGH) * a)
        if config.dual_clip:
            policy = np.where(a < 0, np.minimum(policy, -config.dual_clip * a), policy)
    if config.correction == "token_truncate":
        policy = policy * np.clip(np.exp(arrays["old"] - arrays["sampler"]), 0.5, 1.2)
    if config.top_entropy < 1:
        policy = policy * (arrays["entropy"] >= FLOOR)
    x, x_held = logp - arrays["ref"], held - arrays["ref"]
    k3 = lambda x: np.exp(-x) + x - 1  # noqa: E731
    kl = {"k1": x, "k2": x**2 / 2, "k3": k3(x), "k3_k2": k3(x_held) + (x**2 - x_held**2) / 2}[config.kl]
    average = objective.OWN_AVERAGE[config.objective]
    weight = {"sequence": 1 / count / 8, "token": 1 / mask.sum(), "constant": 1 / 8 / 7}[average]
    each = policy + config.beta * kl - config.entropy_bonus * arrays["entropy"]
    return (weight * mask * each).sum()


def differences(arrays, config, step=1e-6):
    """Central differences of the oracle with respect to every log-prob."""
    logp, found = arrays["lp"], np.zeros((8, 7))
    for place in np.ndindex(8, 7):
        there, back = logp.copy(), logp.copy()
        there[place] += step
        back[place] -= step
        found[place] = (oracle(there, logp, arrays, config) - oracle(back, logp, arrays, config)) / (2 * step)
    return found


SETTINGS = [{"objective": name} for name in objective.OWN_AVERAGE]
SETTINGS += [{"kl": name} for name in ("k1", "k2", "k3_k2")]
SETTINGS += [{"dual_clip": 1.5}, {"objective": "gspo", "dual_clip": 1.3}, {"objective": "cispo", "cispo_cap": 1.1}]
SETTINGS += [{"correction": "token_truncate", "correction_low": 0.5, "correction_high": 1.2, "top_entropy": 0.5}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_value_and_gradient(settings):
    arrays = case()
    fixed = {"beta": BETA, "clip_low": LOW, "clip_high": HIGH, "entropy_bonus": BONUS, "max_tokens": 7}
    config = objective.LossConfig(**fixed, **settings)
    with jax.enable_x64(True):  # noqa: FBT003
        found = objective.Tokens(
            logp_BT=jnp.asarray(arrays["lp"]),
            entropy_BT=jnp.asarray(arrays["entropy"]),
            old_logp_BT=jnp.asarray(arrays["old"]),
            sampler_logp_BT=jnp.asarray(arrays["sampler"]),
            ref_logp_BT=jnp.asarray(arrays["ref"]),
            advantage_BT=jnp.asarray(np.repeat(arrays["adv"][:, None], 7, axis=1)),
            sample_BT=jnp.asarray(np.where(arrays["mask"] > 0, np.arange(1, 9)[:, None], 0)),
            entropy_floor=jnp.asarray(FLOOR),
        )
        totals = objective.Totals(num_samples=8, num_tokens=jnp.float32(35.0))
        of = objective.make(config)
        value, gradient = jax.value_and_grad(lambda x: of(found.replace(logp_BT=x), totals)[0])(found.logp_BT)
        assert gradient.dtype == jnp.float64
        value, gradient = float(value), np.asarray(gradient)
    # Weights are float32: 6e-8 of every term.
    np.testing.assert_allclose(value, oracle(arrays["lp"], arrays["lp"], arrays, config), atol=1e-7)
    np.testing.assert_allclose(gradient, differences(arrays, config), atol=2e-8)
    assert np.abs(gradient).max() > 1e-2
    tolerance.assert_close(gradient[arrays["mask"] == 0], np.zeros(21))
