"""A profile sees the steps it is asked for, and the run does not notice."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.core import profiling, runtime
from thinkfirst.rl import loop, optimizer, stages

STAGE = stages.Sft(optimizer.OptimizerConfig(1e-3), steps=5, save_every=2)
CLOCKS = ("step_time", "tokens_per_second")


@jax.jit
@jax.named_scope("update")
def advance(total, step):
    return total * 10 + step


def step_fn(state, step):
    with profiling.phase("update"):
        total = advance(state["sum"], jax.device_put(np.float32(step)))
        return {"sum": total}, {"loss": float(total), "tokens_of_step": 3}, [{"completion": str(step)}]


def run(workdir, profiled, **limits):
    """The sum, and the metrics without clocks; `limits` are of the first of two calls."""
    start, settings = {"sum": jnp.float32(0)}, {"first_step": 100, "num_tokens": 0, "profiled": profiled}
    if limits:
        with pytest.raises(loop.OutOfBudget):
            loop.run(workdir, STAGE, start, step_fn, budget=runtime.Budget(**limits), **settings)
        return None
    done = loop.run(workdir, STAGE, start, step_fn, budget=runtime.Budget(), **settings)
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return float(done.state["sum"]), [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def test_a_profiled_run_computes_what_another_does(tmp_path, capsys):
    """Steps are numbered through the run, as in metrics.jsonl."""
    plain = run(tmp_path / "plain", profiling.NOTHING)
    assert not (tmp_path / "plain" / "profile").exists()
    window = profiling.Window(tmp_path / "profiled", range(102, 104))
    assert run(tmp_path / "profiled", window) == plain
    window.end()
    out = capsys.readouterr().out
    assert "steps 102 to 103: " in out and "did not" not in out
    for name in ("update", "log", "save"):
        assert f"  {name}\n" in out


@pytest.mark.parametrize(("limits", "last"), [({}, 105), ({"max_steps": 4}, 104)])
def test_a_profile_ends_with_the_stage_or_the_call(tmp_path, capsys, limits, last):
    window = profiling.Window(tmp_path, range(103, 110))
    run(tmp_path, window, **limits)
    window.end()
    out = capsys.readouterr().out
    assert f"steps 103 to {last}: " in out and f"not {last + 1}\n" in out
