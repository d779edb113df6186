import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.core import checkpoint

STATE = {"a": jnp.arange(6.0).reshape(2, 3), "count": jnp.int32(4)}


def test_round_trip_and_keeping_the_newest(tmp_path):
    saved = checkpoint.Checkpoints(tmp_path / "stage", keep=2)
    for step in (1, 2, 3):
        saved.save(step, {**STATE, "count": jnp.int32(step)}, {"seconds": step / 2})
    assert saved.steps() == [2, 3]
    state, meta = checkpoint.Checkpoints(tmp_path / "stage").restore(3, STATE)
    assert int(state["count"]) == 3
    np.testing.assert_array_equal(state["a"], STATE["a"])
    assert meta == {"seconds": 1.5}


def test_a_save_that_was_cut_short_does_not_count(tmp_path):
    saved = checkpoint.Checkpoints(tmp_path)
    saved.save(1, STATE, {})
    (tmp_path / ".2.part" / "arrays").mkdir(parents=True)
    assert saved.steps() == [1]
    saved.save(2, STATE, {})
    assert saved.steps() == [1, 2]


def test_another_shape_is_refused(tmp_path):
    saved = checkpoint.Checkpoints(tmp_path)
    saved.save(1, STATE, {})
    with pytest.raises(ValueError, match=r"does not fit the run: a is \(\(2, 3\), 'float32'\), expected \(\(2, 4\)"):
        saved.restore(1, {**STATE, "a": jnp.zeros((2, 4))})
    with pytest.raises(ValueError, match=r"does not fit the run: b/c is None, expected .* \(2 differ\)"):
        saved.restore(1, {"a": STATE["a"], "b": {"c": STATE["count"]}})
    with pytest.raises(ValueError, match="does not fit"):
        saved.restore(7, STATE)
