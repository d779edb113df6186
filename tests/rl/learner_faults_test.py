"""Planted faults: each leaves adapter, moments and counters as they were, is counted, and is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tolerance
from thinkfirst.models import config, gemma, lora
from thinkfirst.rl import batch, guard, learner, objective

TINY = config.GemmaConfig(
    generation=3, vocab_size=32, num_layers=2, width=16, ff_width=16, num_heads=2, num_kv_heads=1, head_dim=8, window=4,
    pattern=("local", "global"), query_scalar=8, dtype="float32",
)  # fmt: skip
MODEL = gemma.Model(TINY)
PARAMS = MODEL.init(0)
TRANSFORM = optax.adamw(1e-2)


def adapter():
    return jax.tree.map(lambda x: x + 0.02, lora.init(MODEL.adapted(), jax.random.key(1), rank=2, alpha=2.0))


def experience(num_rows=4, **changes):
    """Rows with 3 prompt tokens and 4 completion tokens whose old log-probs are a guess."""
    rng = np.random.default_rng(0)
    prompt, completion = rng.integers(2, 32, (num_rows, 3)), rng.integers(2, 32, (num_rows, 4))
    prompt_length, length = np.full(num_rows, 3), np.full(num_rows, 4)
    rows = batch.Experience(
        tokens_BT=batch.join(prompt, prompt_length, completion, length),
        prompt_length_B=prompt_length,
        completion_BT=completion,
        completion_length_B=length,
        old_logp_BT=np.full((num_rows, 4), -3.4, np.float32),
        floor_BT=None,
        advantage_B=np.resize(np.float32([1.0, -1.0]), num_rows),
    )
    return rows.replace(**changes)


@pytest.fixture(scope="module")
def step():
    """The compiled step, on two micro-batches, from an optimiser that has taken a step already."""
    taken = learner.make_step(MODEL, TRANSFORM, objective.LossConfig(beta=0.1), micro_batches=2, remat="none")

    def run(rows, params=PARAMS, factors=None):
        start = (factors or adapter(), TRANSFORM.init(adapter()))
        before = jax.device_get(start)
        *after, metrics = taken(*start, params, rows, jnp.float32(1.0))
        scalars, wrong = guard.split(jax.device_get(metrics))
        unchanged = all(
            np.array_equal(a, b, equal_nan=True)
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(after)), strict=True)
        )
        return unchanged, scalars, wrong

    return run


def planted(tree, name):
    """The tree with one NaN in the leaf of that name."""
    one = lambda path, x: x.at[(0,) * x.ndim].set(jnp.nan) if name in jax.tree_util.keystr(path) else x  # noqa: E731
    return jax.tree.map_with_path(one, tree)


def test_nothing_is_wrong_without_a_fault(step):
    unchanged, scalars, wrong = step(experience())
    assert not unchanged and wrong == ()
    assert (scalars["skipped"], scalars["skipped/not_finite"]) == (0, 0)


def test_a_nan_in_a_weight(step):
    params = planted(PARAMS, "gate")
    unchanged, scalars, wrong = step(experience(), params)
    assert unchanged and scalars["skipped/not_finite"] == 1 and scalars["skipped/no_signal"] == 0
    assert {"logp", "ref_logp", "loss"} <= set(wrong) and "old_logp" not in wrong
    named = guard.not_finite({"params": params})
    assert named and all("gate" in name for name in named)


def test_a_nan_in_the_adapter_is_not_spread(step):
    factors = planted(adapter(), "query")
    unchanged, scalars, wrong = step(experience(), factors=factors)
    assert unchanged and scalars["skipped/not_finite"] == 1
    assert "logp" in wrong and "ref_logp" not in wrong  # the reference has no adapter


def test_a_gradient_that_is_not_finite(step):
    """Adapter values at which one product overflows in the backward pass alone: the loss is finite."""
    params = jax.tree.map_with_path(
        lambda path, x: jnp.full_like(x, 2e38) if "down" in jax.tree_util.keystr(path) else x, PARAMS
    )
    unchanged, scalars, wrong = step(experience(), params)
    assert unchanged and scalars["skipped/not_finite"] == 1
    assert any(name.startswith("gradient") for name in wrong)


def test_a_nan_among_the_old_log_probs(step):
    old_BT = experience().old_logp_BT.copy()
    old_BT[2, 1] = np.nan
    unchanged, scalars, wrong = step(experience(old_logp_BT=old_BT))
    assert unchanged and scalars["skipped/not_finite"] == 1
    assert wrong[:2] == ("old_logp", "loss")


def test_a_nan_behind_the_completion_is_nothing(step):
    old_BT = experience().old_logp_BT.copy()
    old_BT[2, 3] = np.nan
    unchanged, _, wrong = step(experience(old_logp_BT=old_BT, completion_length_B=np.array([4, 4, 3, 4])))
    assert not unchanged and wrong == ()


def test_a_nan_among_the_advantages(step):
    unchanged, scalars, wrong = step(experience(advantage_B=np.float32([1.0, np.nan, 0.0, 0.0])))
    assert unchanged and scalars["skipped/not_finite"] == 1
    assert "advantage" in wrong and "old_logp" not in wrong


def test_rewards_all_equal_are_no_fault(step):
    unchanged, scalars, wrong = step(experience(advantage_B=np.zeros(4, np.float32)))
    assert unchanged and wrong == ()
    assert (scalars["skipped"], scalars["skipped/no_signal"], scalars["skipped/not_finite"]) == (1, 1, 0)


def test_a_row_without_completion_tokens_has_no_part(step):
    """It counts as a row; with all others of advantage 0 there is no step."""
    length_B = np.array([4, 0, 4, 4])
    unchanged, scalars, wrong = step(experience(completion_length_B=length_B))
    assert not unchanged and wrong == () and np.isfinite(scalars["loss"])
    alone = experience(completion_length_B=length_B, advantage_B=np.float32([0, 1, 0, 0]))
    unchanged, scalars, wrong = step(alone)
    assert unchanged and wrong == () and scalars["skipped/no_signal"] == 1


def test_a_row_of_length_one(step):
    """One token of prompt and none of completion; and one of each."""
    rows = experience(prompt_length_B=np.array([1, 1, 3, 3]), completion_length_B=np.array([0, 1, 4, 4]))
    rows.tokens_BT[0, 1:], rows.tokens_BT[1, 1], rows.tokens_BT[1, 2:] = 0, rows.completion_BT[1, 0], 0
    unchanged, scalars, wrong = step(rows)
    assert not unchanged and wrong == () and np.isfinite(scalars["loss"])


def test_rows_of_length_zero_do_not_count(step):
    """Four rows beside four of padding are the four rows: the same loss, the same update."""
    padded = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x)]), experience())
    alone, beside = step(experience())[1], step(padded)[1]
    for name, value in alone.items():
        tolerance.assert_close(np.float32(beside[name]), np.float32(value))
