import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.core import runtime
from thinkfirst.rl import loop, optimizer, stages

STAGE = stages.Sft(optimizer.OptimizerConfig(1e-3), steps=5, save_every=2)

advance = jax.jit(lambda total, step: total * 10 + step)


def step_fn(state, step):
    """A state whose value tells which steps made it."""
    total = advance(state["sum"], jax.device_put(np.float32(step)))
    return {"sum": total}, {"loss": float(step), "tokens_of_step": 3}, [{"completion": str(step)}]


def run(workdir, **limits):
    start = {"sum": jnp.float32(0)}
    return loop.run(workdir, STAGE, start, step_fn, first_step=100, num_tokens=7, budget=runtime.Budget(**limits))


def written(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_steps_are_taken_in_order_and_counted(tmp_path):
    done = run(tmp_path)
    assert float(done.state["sum"]) == 12345
    assert done.num_tokens == 7 + 5 * 3
    assert [(row["step"], row["stage_step"], row["num_tokens"]) for row in written(tmp_path)] == [
        (100 + step, step, 7 + 3 * step) for step in range(1, 6)
    ]


def test_a_call_that_is_cut_short_is_gone_on_with(tmp_path):
    for _ in range(2):
        with pytest.raises(loop.OutOfBudget):
            run(tmp_path, max_steps=2)
    done = run(tmp_path)
    assert float(done.state["sum"]) == 12345
    assert len(written(tmp_path)) == 5


def test_a_deadline_loses_no_step(tmp_path):
    with pytest.raises(loop.OutOfBudget):
        run(tmp_path, max_seconds=1e-9)
    assert not (tmp_path / "metrics.jsonl").exists()
    with pytest.raises(loop.OutOfBudget):
        run(tmp_path, max_steps=3)
    assert loop.folder(tmp_path, STAGE).joinpath("3").is_dir()


def test_an_interrupt_goes_back_to_the_last_save(tmp_path):
    def interrupted(state, step):
        if step == 4:
            raise KeyboardInterrupt
        return step_fn(state, step)

    with pytest.raises(KeyboardInterrupt):
        loop.run(
            tmp_path, STAGE, {"sum": jnp.float32(0)}, interrupted, first_step=0, num_tokens=0, budget=runtime.Budget()
        )
    assert [row["step"] for row in written(tmp_path)] == [1, 2, 3]
    done = loop.run(
        tmp_path, STAGE, {"sum": jnp.float32(0)}, step_fn, first_step=0, num_tokens=0, budget=runtime.Budget()
    )
    assert float(done.state["sum"]) == 12345
    assert [row["step"] for row in written(tmp_path)] == [1, 2, 3, 4, 5]


def test_what_moves_to_the_device_says_so(tmp_path):
    """A Python number that meets an array on the device would be sent there without a word."""
    unsaid = lambda state, step: ({"sum": state["sum"] + step}, {"tokens_of_step": 1}, [])  # noqa: E731
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        loop.run(tmp_path, STAGE, {"sum": jnp.float32(0)}, unsaid, first_step=0, num_tokens=0, budget=runtime.Budget())
