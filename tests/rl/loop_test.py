import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.core import runtime
from thinkfirst.rl import guard, loop, optimizer, stages

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


def with_faults(*bad):
    """`step_fn`, but the steps in `bad` meet something that is not finite and change nothing."""

    def step(state, number):
        after, row, completions = step_fn(state, number)
        if number not in bad:
            return after, row, completions
        fault = guard.Fault(("reward", "loss"), {"reward_PG": np.array([[np.nan]])})
        return state, {**row, "fault": fault, "skipped/not_finite": 1.0}, completions

    return step


def go(workdir, *bad, **limits):
    start, budget = {"sum": jnp.float32(0)}, runtime.Budget(**limits)
    return loop.run(workdir, STAGE, start, with_faults(*bad), first_step=100, num_tokens=0, budget=budget)


def test_a_bad_step_is_told_kept_and_passed_over(tmp_path, capsys):
    assert float(go(tmp_path, 2, 3, 5).state["sum"]) == 14
    assert [row.get("skipped/not_finite", 0.0) for row in written(tmp_path)] == [0, 1, 1, 0, 1]
    kept = sorted(path.name for path in (tmp_path / "bad_batches").iterdir())
    assert kept == [f"step_{step}.{kind}" for step in (102, 103, 105) for kind in ("json", "npz")]
    about = json.loads((tmp_path / "bad_batches" / "step_103.json").read_text())
    assert about["stage"] == "sft" and about["stage_step"] == 3 and about["not_finite"] == ["reward", "loss"]
    assert "sft: step 102 was not finite: reward, loss; no such update was made" in capsys.readouterr().out


def test_too_many_bad_steps_in_a_row_end_the_run_before_their_checkpoints(tmp_path):
    with pytest.raises(guard.TooManyBadSteps, match=r"step 105 .*: reward, loss; .*; 3 such steps in a row .*sft/2$"):
        go(tmp_path, 3, 4, 5)
    assert loop.newest(tmp_path, STAGE) == 2
    assert len(written(tmp_path)) == 5
    assert float(go(tmp_path).state["sum"]) == 12345  # what was wrong has been mended: on from the last good state


def test_a_call_cut_short_does_not_forget_the_bad_steps(tmp_path):
    with pytest.raises(loop.OutOfBudget):
        go(tmp_path, 2, 3, 4, max_steps=3)
    with pytest.raises(guard.TooManyBadSteps, match="step 104"):
        go(tmp_path, 2, 3, 4)


def test_a_good_step_ends_the_row(tmp_path):
    for _ in range(4):
        with pytest.raises(loop.OutOfBudget):
            go(tmp_path, 1, 2, 4, 5, max_steps=1)
    assert float(go(tmp_path, 1, 2, 4, 5).state["sum"]) == 3
