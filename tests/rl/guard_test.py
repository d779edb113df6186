import json

import jax.numpy as jnp
import numpy as np

from thinkfirst.rl import batch, guard


def test_leaves_are_named_by_their_path():
    tree = {"a": jnp.array([1.0, jnp.nan]), "b": {"c": jnp.array([jnp.inf]), "count": jnp.array(3)}, "d": jnp.ones(2)}
    assert guard.not_finite({"weights": tree, "other": jnp.ones(1)}) == ("weights/a", "weights/b/c")


def test_scalars_and_checks_are_told_apart():
    metrics = {
        "loss": 0.5,
        "finite/gradient/a": False,
        "finite/logp": False,
        "finite/loss": True,
        "finite/update": False,
    }
    assert guard.split(metrics) == ({"loss": 0.5}, ("logp", "gradient/a", "update"))  # cause before consequence


def test_a_sound_step_has_no_fault():
    assert guard.fault((), {"x": np.ones(1)}, trees={"params": jnp.array([jnp.nan])}) is None


def test_the_batch_is_kept_with_what_was_wrong(tmp_path):
    rows = batch.Rows(np.ones((2, 3), np.int32), np.array([[1, 1, 1], [2, 2, 0]]), np.array([[1, 2], [1, 0]]))
    fault = guard.fault(
        ("reward", "loss"),
        rows,
        problems=["p", "q"],
        rewards={"reward_PG": np.array([[1.0, np.nan]])},
        trees={"adapter": {"a": jnp.array([jnp.nan])}},
    )
    path = guard.write(tmp_path, fault, {"step": 7, "stage": "sft"})
    assert path == tmp_path / "bad_batches" / "step_7.npz"
    with np.load(path) as kept:
        assert kept["tokens_BT"].tolist() == [[1, 1, 1], [1, 1, 1]]
        assert kept["column_BT"].tolist() == [[1, 2], [1, 0]]
        assert np.isnan(kept["reward_PG"][0, 1])
    about = json.loads(path.with_suffix(".json").read_text())
    assert about == {
        "step": 7,
        "stage": "sft",
        "not_finite": ["adapter/a", "reward", "loss"],
        "problems": ["p", "q"],
    }


def test_a_fault_says_what_came_first():
    fault = guard.Fault(("a", "b", "c", "d", "e"), {})
    assert str(fault) == "a, b, c and 2 more"
    assert str(guard.Fault(("a",), {})) == "a"
