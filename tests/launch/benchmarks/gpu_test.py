"""The bench of a GPU's kernels, with the reference on both sides: what it checks, times and says."""

import functools
import importlib.util
import json
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from thinkfirst.kernels import placement
from thinkfirst.kernels.flash_attention import reference
from thinkfirst.launch import bench
from thinkfirst.launch.benchmarks import gpu, timing

SMALL = {
    "window_fwd": functools.partial(gpu.attention, 2, 24, (4, 1), width=16, window=5),
    "causal_g2_fwd_bwd": functools.partial(gpu.attention, 2, 24, (4, 2), width=16, soft_cap=5.0, gradient=True),
    "packed_fwd": functools.partial(gpu.attention, 1, 24, (2, 1), width=16, texts=4),
    "token_logprob_fwd": functools.partial(gpu.logprob, 8, 64, 16),
    "token_logprob_fwd_grad": functools.partial(gpu.logprob, 8, 64, 16, gradient=True),
    "ring_decode": functools.partial(gpu.decode, 2, 16, 16, (4, 1), width=16, window=16),
    "full_decode_group": functools.partial(gpu.decode, 2, 16, 32, (4, 1), width=16, tokens=16),
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(gpu, "CASES", SMALL)
    monkeypatch.setattr(gpu, "OURS", "reference")
    monkeypatch.setattr(gpu, "CALLS", 1)
    monkeypatch.setattr(placement, "platform", lambda: "gpu")


def run(tmp_path, *arguments, status=0):
    out = tmp_path / "figures.json"
    assert bench.main(["bench", "--suite=kernels", "--repeats=1", f"--out={out}", *arguments]) == status
    return json.loads(out.read_text()) if out.exists() else None


def by_case(figures):
    return {figure["case"]: figure for figure in figures}


@pytest.mark.long
def test_every_case_is_checked_and_timed(small, tmp_path, capsys):
    figures = by_case(run(tmp_path))
    assert set(figures) == set(SMALL)
    for name, figure in figures.items():
        assert {"ours"} < set(figure["seconds"]), name
        assert set(figure["seconds"]) == set(figure["gaps"]) == set(figure["temp_bytes"]), name
    assert set(figures["causal_g2_fwd_bwd"]["gaps"]["ours"]) == {
        "context",
        "gradient of query",
        "gradient of key",
        "gradient of value",
    }
    assert "ring_decode" in capsys.readouterr().out


def test_a_peer_that_does_not_run_here_is_named_with_its_reason(small, tmp_path, capsys):
    """cuDNN on a CPU.  It has no soft cap and no segments either: there it is no peer."""
    figures = by_case(run(tmp_path, "--cases=window_fwd,causal_g2_fwd_bwd,packed_fwd"))
    assert list(figures["window_fwd"]["refused"]) == ["cudnn"]
    assert figures["window_fwd"]["refused"]["cudnn"] in capsys.readouterr().out
    assert figures["causal_g2_fwd_bwd"]["refused"] == figures["packed_fwd"]["refused"] == {}


def test_a_peer_is_given_the_same_task(small, tmp_path, monkeypatch):
    """JAX's own attention in place of tokamax's: it agrees, and with another window it is not timed."""
    ahead = 0

    def attention(*operands, logits_soft_cap, local_window_size, **settings):
        assert logits_soft_cap is None
        window = local_window_size[0] + ahead, 0
        with jax.numpy_dtype_promotion("standard"):
            return jax.nn.dot_product_attention(*operands, local_window_size=window, **settings)

    monkeypatch.setitem(sys.modules, "tokamax", types.SimpleNamespace(dot_product_attention=attention))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there" if name == "tokamax" else find(name))
    monkeypatch.setattr(gpu, "_versions", lambda: {"device": "cpu"})
    (figure,) = run(tmp_path, "--cases=window_fwd")
    assert set(figure["seconds"]) == {"ours", "xla", "tokamax"}
    ahead = 1
    (figure,) = run(tmp_path, "--cases=window_fwd")
    assert set(figure["seconds"]) == {"ours", "xla"}
    assert "is over 0.008; nothing is timed" in figure["refused"]["tokamax"]


def test_nothing_is_timed_when_ours_is_wrong(small, tmp_path, monkeypatch, capsys):
    right = reference.attention
    calls = []

    def wrong_once(*operands, **settings):
        calls.append(operands[0].dtype)
        return right(*operands, **settings) * (1.05 if calls == [jnp.float32, jnp.bfloat16] else 1.0)

    monkeypatch.setattr(reference, "attention", wrong_once)
    monkeypatch.setattr(timing, "alternate", lambda sides, repeats: pytest.fail("timed"))
    assert run(tmp_path, "--cases=window_fwd", status=2) is None
    assert "window_fwd, ours, context: 0.0" in capsys.readouterr().err


def test_seconds_are_of_one_unit_of_work(small, monkeypatch):
    monkeypatch.setattr(timing, "alternate", lambda sides, repeats: dict.fromkeys(sides, 16.0))
    monkeypatch.setattr(gpu, "CALLS", 2)
    figure = gpu.measured("ring_decode", SMALL["ring_decode"](), 1, peers=False)
    assert figure["seconds"] == {"ours": 1.0}  # two calls of eight tokens


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cases=window"], "no case 'window'; there are window_fwd"),
        (["--search"], "--search means nothing here"),
        (["--report=docs/kernels.md"], "--report means nothing here"),
    ],
)
def test_what_it_cannot_do_it_says(arguments, complaint, small, tmp_path, capsys):
    assert run(tmp_path, *arguments, status=2) is None
    assert complaint in capsys.readouterr().err
