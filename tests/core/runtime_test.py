import pytest

from thinkfirst.core import hosts, runtime


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


def test_work_in_hand_is_left_at_the_deadline_and_not_for_a_count_of_steps():
    with pytest.raises(runtime.Stopped, match="rollout of step 3"):
        runtime.Budget(max_seconds=1e-9).check("rollout of step 3")
    budget = runtime.Budget(max_steps=1)
    budget.take()
    budget.check("the report")
    assert budget.spent() and budget.where == "the report"


def test_a_preemption_is_asked_for_at_every_look_and_remembered(monkeypatch):
    """JAX says so once, at a number all hosts have agreed on."""
    asked = []
    monkeypatch.setattr(hosts, "preempted", lambda poll: asked.append(poll) or poll == 3)
    budget = runtime.Budget()
    budget.check("a")
    assert not budget.spent()
    with pytest.raises(runtime.Stopped):
        budget.check("b")
    assert budget.spent() and budget.preempted
    assert asked == [1, 2, 3]
