"""The log-prob bench checks before it times."""

import jax.numpy as jnp
import pytest

from thinkfirst.launch.benchmarks import logprob, timing


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(logprob, "TOKENS", 8)
    monkeypatch.setattr(logprob, "VOCABULARY", 512)
    monkeypatch.setattr(logprob, "WIDTH", 16)


def test_both_sides_agree_and_are_measured(small):
    found = logprob.run(1)
    assert set(found["median_seconds"]) == {"token_logprob", "plain logits"}
    assert all(gap <= logprob.GAP for gap in found["checks"].values())
    # logits and their gradient: at least [8, 512] float32
    assert found["temp_bytes"]["plain logits"] >= 8 * 512 * 4


def test_nothing_is_timed_when_the_numbers_differ(small, monkeypatch):
    right = logprob.ours
    monkeypatch.setattr(logprob, "ours", lambda *operands: (right(*operands)[0] + 1e-3, right(*operands)[1]))
    monkeypatch.setattr(timing, "alternate", lambda sides, repeats: pytest.fail("timed"))
    with pytest.raises(ValueError, match=r"log-prob: .* is over 0.0001; nothing is timed"):
        logprob.run(1)


def test_a_gap_that_is_no_number_is_no_small_gap():
    with pytest.raises(ValueError, match="nan"):
        timing.require_small({"loss": float(jnp.nan)}, 1.0)


def test_sides_take_turns_and_the_first_turn_is_not_counted():
    order = []
    found = timing.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert set(found) == {"a", "b"}
