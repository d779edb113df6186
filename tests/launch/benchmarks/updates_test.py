"""The bench of updates at a tiny size: all ways have one gradient, and nothing is timed when one has not."""

import dataclasses

import jax.numpy as jnp
import pytest

from thinkfirst.launch.benchmarks import logprob, rollouts, steps, timing, updates

CASE = rollouts.Case("long_tail", 4, 4, 8, (1, 2, 1, 5, *[9] * 4, 1, 1, 4, 1, *[9] * 4))  # half of it is taken
MODEL = rollouts.model


@pytest.fixture
def small(monkeypatch):
    config = dataclasses.replace(
        MODEL(), vocab_size=64, num_layers=6, width=16, ff_width=32, num_heads=2, head_dim=8, window=4, query_scalar=8
    )
    monkeypatch.setattr(rollouts, "model", lambda: dataclasses.replace(config, max_length=64))
    monkeypatch.setattr(steps, "cases", lambda: (CASE, CASE))
    monkeypatch.setattr(updates, "ROW_TOKENS", 16)
    for name, size in {"TOKENS": 8, "VOCABULARY": 512, "WIDTH": 16}.items():
        monkeypatch.setattr(logprob, name, size)


@pytest.mark.long
def test_every_way_is_checked_and_timed(small, capsys):
    found = updates.run(1)
    assert [figure["case"] for figure in found] == ["update", "score", "token_logprob"]
    for figure in found[:2]:
        assert set(figure["seconds"]) == {"ours", "a row for each sample", updates.PLAIN}
        assert figure["ratio"].keys() == figure["seconds"].keys() - {"ours"}
        assert {"gradient, ours", "gradient, a row for each sample"} < set(figure["checks"])
        assert figure["roofline"] is None
    # [rows, 16, 64] of float32 stand there
    assert found[1]["temp_bytes"][updates.PLAIN] >= 16 * 64 * 4
    assert "update: 8 samples, 80 tokens" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize(
    ("scale", "complaint"),
    [(1.01, "gradient, ours: 0.0"), (float("nan"), "gradient, logits written out: something is not finite")],
)
def test_nothing_is_timed_when_a_way_has_another_gradient(small, monkeypatch, scale, complaint):
    right = logprob.plain
    monkeypatch.setattr(logprob, "plain", lambda *given: tuple(jnp.float32(scale) * value for value in right(*given)))
    monkeypatch.setattr(timing, "alternate", lambda sides, repeats: pytest.fail("timed"))
    with pytest.raises(ValueError, match=complaint):
        updates.run(1, names=("update",))
