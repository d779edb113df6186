"""The log-prob bench checks before it times."""

import pytest

from thinkfirst.launch.benchmarks import logprob, timing


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(logprob, "TOKENS", 8)
    monkeypatch.setattr(logprob, "VOCABULARY", 512)
    monkeypatch.setattr(logprob, "WIDTH", 16)


def test_both_sides_agree_and_are_measured(small):
    found = logprob.run(1)
    assert set(found["seconds"]) == {"ours", "logits written out"}
    assert found["ratio"] == {"logits written out": 1 / found["slower"]}
    assert all(gap <= logprob.GAP for gap in found["checks"].values())
    # logits and their gradient: at least [8, 512] float32
    assert found["temp_bytes"]["logits written out"] >= 8 * 512 * 4


def test_nothing_is_timed_when_the_numbers_differ(small, monkeypatch):
    right = logprob.ours
    monkeypatch.setattr(logprob, "ours", lambda *operands: (right(*operands)[0] + 1e-3, right(*operands)[1]))
    monkeypatch.setattr(timing, "alternate", lambda sides, repeats: pytest.fail("timed"))
    with pytest.raises(ValueError, match=r"log-prob: .* is over 0.0001; nothing is timed"):
        logprob.run(1)
