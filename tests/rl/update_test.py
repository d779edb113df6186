import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tolerance
from thinkfirst.rl import guard, optimizer, update

TRANSFORM = optax.adamw(optax.linear_schedule(0.1, 0.0, 10), weight_decay=0.1)
TRAINED = {"w": jnp.array([1.0, -2.0]), "v": jnp.array([0.5])}
GRADS = {"w": jnp.array([0.3, 0.4]), "v": jnp.array([0.0])}
YES, NO = jnp.array(True), jnp.array(False)  # noqa: FBT003


def state():
    """Parameters and moments after one good step."""
    return update.take(TRANSFORM, (TRAINED, TRANSFORM.init(TRAINED)), GRADS, jnp.float32(1), useful=YES, checks={})[:2]


def take(grads=GRADS, value=1.0, *, before=None, useful=YES, checks=None):
    before = before or state()
    *after, metrics = update.take(TRANSFORM, before, grads, jnp.float32(value), useful=useful, checks=checks or {})
    return before, tuple(after), guard.split(metrics)


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)
    return True


def flags(scalars):
    return [scalars[name] for name in ("skipped", "skipped/no_signal", "skipped/not_finite")]


def test_a_sound_update_is_that_of_the_optimiser():
    (trained, opt_state), after, (scalars, wrong) = take()
    assert same(after, optimizer.apply(TRANSFORM, GRADS, opt_state, trained))
    assert flags(scalars) == [0, 0, 0] and wrong == ()
    tolerance.assert_close(np.float32(scalars["grad_norm"]), np.float32(0.5))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_named(bad):
    before, after, (scalars, wrong) = take({"w": jnp.array([0.3, bad]), "v": jnp.array([0.0])})
    assert same(after, before)  # parameters, moments and the counts of steps
    assert flags(scalars) == [1, 0, 1]
    assert wrong[:2] == ("gradient/w", "gradient_norm")


def test_a_loss_that_is_not_finite_changes_nothing():
    before, after, (scalars, wrong) = take(value=np.nan)
    assert same(after, before)
    assert flags(scalars) == [1, 0, 1] and wrong == ("loss",)


def test_what_the_caller_checked_counts():
    before, after, (_, wrong) = take(checks={"old_logp": NO, "logp": YES})
    assert same(after, before)
    assert wrong == ("old_logp",)


def test_a_norm_that_overflows_counts():
    """Every gradient is finite, the sum of their squares is not: clipped by it, the update would be 0."""
    before, after, (_, wrong) = take({"w": jnp.array([1e30, 0.0]), "v": jnp.array([0.0])})
    assert same(after, before)
    assert "gradient_norm" in wrong and "gradient/w" not in wrong


def test_moments_that_are_not_finite_are_never_applied():
    trained, opt_state = state()
    poisoned = jax.tree.map(lambda x: x * jnp.nan if x.dtype == jnp.float32 else x, opt_state)
    before, after, (_, wrong) = take(before=(trained, poisoned))
    assert same(after, before)
    assert wrong == ("update",)


def test_rows_that_say_nothing_change_nothing_and_are_no_fault():
    before, after, (scalars, wrong) = take(useful=NO)
    assert same(after, before)
    assert flags(scalars) == [1, 1, 0] and wrong == ()


def test_twenty_bad_steps_are_no_better_than_one():
    """optax.apply_if_finite would apply one of them."""
    before = now = state()
    for _ in range(20):
        _, now, _ = take({"w": jnp.array([0.3, jnp.nan]), "v": jnp.array([0.0])}, before=now)
    assert same(now, before)


def test_parts_are_joined_in_the_order_they_had():
    rows = {"x": jnp.arange(12).reshape(6, 2), "y": jnp.arange(6)}
    parts = update.cut(rows, 3)
    assert parts["y"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert same(update.joined(parts), rows)


def test_losses_and_gradients_of_micro_batches_add_up():
    x_B = jnp.arange(6.0)
    loss = lambda trained, part: ((trained * part).sum(), part.max())  # noqa: E731
    value, grads, largest = update.accumulate(loss, jnp.float32(2.0), update.cut(x_B, 3))
    assert (float(value), float(grads), largest.tolist()) == (30.0, 15.0, [3.0, 4.0, 5.0])


def test_only_what_counts_has_to_be_finite():
    value, mask = jnp.array([1.0, jnp.nan]), jnp.array([True, False])
    assert update.finite_where(mask, value)
    assert not update.finite_where(~mask, value)
