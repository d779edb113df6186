"""Planted faults: each leaves adapter, moments and counters as they were, is counted, and is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tolerance
from thinkfirst.models import config, gemma, lora
from thinkfirst.rl import batch, guard, learner, objective, packing

TINY = config.GemmaConfig(
    generation=3, vocab_size=32, num_layers=2, width=16, ff_width=16, num_heads=2, num_kv_heads=1, head_dim=8, window=4,
    pattern=("local", "global"), query_scalar=8, dtype="float32",
)  # fmt: skip
MODEL = gemma.Model(TINY)
PARAMS = MODEL.init(0)
TRANSFORM = optax.adamw(1e-2)


def adapter():
    return jax.tree.map(lambda x: x + 0.02, lora.init(MODEL.adapted(), jax.random.key(1), rank=2, alpha=2.0))


def experience(*, lengths=((3, 4),) * 4, advantage=(1.0, -1.0, 1.0, -1.0), old_logp=None, num_rows=0):
    """Samples of so many tokens of prompt and completion, one a row; their old log-probs are a guess."""
    rng = np.random.default_rng(0)
    samples = [
        batch.Sample(
            prompt=rng.integers(2, 32, prompt).tolist(),
            completion=rng.integers(2, 32, completion),
            logp=np.full(completion, -3.4, np.float32),
            floor=np.zeros(completion, np.float32),
            advantage=advantage[i],
        )
        for i, (prompt, completion) in enumerate(lengths)
    ]
    plan = packing.one_a_row(len(samples), num_rows=num_rows, row_tokens=7, room=4)
    rows = packing.experience(samples, plan, truncated=False)
    return rows if old_logp is None else rows.replace(old_logp_BT=old_logp)


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
    unchanged, scalars, wrong = step(experience(old_logp=old_BT))
    assert unchanged and scalars["skipped/not_finite"] == 1
    assert wrong[:2] == ("old_logp", "loss")


def test_a_nan_behind_the_completion_is_nothing(step):
    old_BT = experience().old_logp_BT.copy()
    old_BT[2, 3] = np.nan
    unchanged, _, wrong = step(experience(old_logp=old_BT, lengths=((3, 4), (3, 4), (3, 3), (3, 4))))
    assert not unchanged and wrong == ()


def test_a_nan_among_the_advantages(step):
    unchanged, scalars, wrong = step(experience(advantage=(1.0, np.nan, 0.0, 0.0)))
    assert unchanged and scalars["skipped/not_finite"] == 1
    assert "advantage" in wrong and "old_logp" not in wrong


def test_rewards_all_equal_are_no_fault(step):
    unchanged, scalars, wrong = step(experience(advantage=(0.0,) * 4))
    assert unchanged and wrong == ()
    assert (scalars["skipped"], scalars["skipped/no_signal"], scalars["skipped/not_finite"]) == (1, 1, 0)


def test_a_row_without_completion_tokens_has_no_part(step):
    """It counts as a row; with all others of advantage 0 there is no step."""
    lengths = ((3, 4), (3, 0), (3, 4), (3, 4))
    unchanged, scalars, wrong = step(experience(lengths=lengths))
    assert not unchanged and wrong == () and np.isfinite(scalars["loss"])
    unchanged, scalars, wrong = step(experience(lengths=lengths, advantage=(0.0, 1.0, 0.0, 0.0)))
    assert unchanged and wrong == () and scalars["skipped/no_signal"] == 1


def test_a_row_of_length_one(step):
    """One token of prompt and none of completion; and one of each."""
    unchanged, scalars, wrong = step(experience(lengths=((1, 0), (1, 1), (3, 4), (3, 4))))
    assert not unchanged and wrong == () and np.isfinite(scalars["loss"])


def test_rows_of_padding_do_not_count(step):
    """Four rows beside four of padding are the four rows: the same loss, the same update."""
    alone, beside = step(experience())[1], step(experience(num_rows=8))[1]
    for name, value in alone.items():
        tolerance.assert_close(np.float32(beside[name]), np.float32(value))
