import pytest

from thinkfirst.core import runtime


def test_budget_of_steps():
    budget = runtime.Budget(max_steps=2)
    assert not budget.spent()
    budget.take()
    budget.take()
    assert budget.spent()


def test_no_limits_and_no_time_left():
    assert not runtime.Budget().spent()
    assert runtime.Budget(max_seconds=1e-9).spent()


def test_negative_limits_are_refused():
    with pytest.raises(ValueError, match="max_steps=-1"):
        runtime.Budget(max_steps=-1)


def test_versions_name_what_decides_numbers():
    assert {"python", "jax", "flax", "optax", "device"} <= runtime.versions().keys()
