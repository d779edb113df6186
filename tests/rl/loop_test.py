import contextlib
import dataclasses
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


def stopping(at):
    """`step_fn`, but step `at` is told to stop in its middle."""

    def step(state, number):
        if number == at:
            raise runtime.Stopped("rollout")
        return step_fn(state, number)

    return step


def test_a_step_that_is_left_saves_the_one_before(tmp_path):
    start = {"sum": jnp.float32(0)}
    with pytest.raises(loop.OutOfBudget):
        loop.run(tmp_path, STAGE, start, stopping(4), first_step=100, num_tokens=7, budget=runtime.Budget())
    assert loop.newest(tmp_path, STAGE) == 3  # two is where it would have been saved anyhow
    assert float(run(tmp_path).state["sum"]) == 12345
    assert [row["step"] for row in written(tmp_path)] == [101, 102, 103, 104, 105]


def test_a_step_that_is_left_at_once_saves_nothing_anew(tmp_path):
    start = {"sum": jnp.float32(0)}
    for at in (1, 3, 3):
        with pytest.raises(loop.OutOfBudget):
            loop.run(tmp_path, STAGE, start, stopping(at), first_step=100, num_tokens=7, budget=runtime.Budget())
        assert loop.newest(tmp_path, STAGE) == at - 1
    assert float(run(tmp_path).state["sum"]) == 12345


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path, capsys):
    with pytest.raises(loop.OutOfBudget):
        run(tmp_path, max_steps=4)
    (tmp_path / "checkpoints" / "sft" / "4" / "meta.json").write_text("{}")
    assert float(run(tmp_path).state["sum"]) == 12345
    said = capsys.readouterr().out
    assert "sft/4/meta.json: 2 bytes, and" in said and "resumes from step 102 (2 of 5" in said
    assert [row["num_tokens"] for row in written(tmp_path)] == [10, 13, 16, 19, 22]


def test_a_finished_stage_that_is_damaged_is_refused_by_name(tmp_path):
    done = run(tmp_path)
    (tmp_path / "checkpoints" / "sft" / "5" / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match=r"sft/5/meta\.json: 2 bytes"):
        loop.restore(tmp_path, STAGE, done.state, 5)


def test_a_checkpoint_of_another_base_is_refused(tmp_path):
    settings = {"first_step": 100, "num_tokens": 7, "budget": runtime.Budget(max_steps=2)}
    start = {"sum": jnp.float32(0)}
    with pytest.raises(loop.OutOfBudget):
        loop.run(tmp_path, STAGE, start, step_fn, made_of={"base": "a"}, **settings)
    with pytest.raises(ValueError, match="sft, step 2: made with another base a -> b"):
        loop.run(tmp_path, STAGE, start, step_fn, made_of={"base": "b"}, **settings)


def scored(workdir):
    """Step -> score of every checkpoint there is."""
    found = (workdir / "checkpoints" / "sft").glob("*/meta.json")
    return {int(path.parent.name): json.loads(path.read_text())["score"] for path in found}


def test_the_best_checkpoint_is_the_same_whatever_was_cut_short(tmp_path):
    """Losses 1, 2, ..: every second step is saved with minus the mean of its two; interruptions change no score."""
    long = dataclasses.replace(STAGE, steps=7)
    for folder, calls in (("straight", [0]), ("cut", [1, 2, 0])):
        for steps in calls:
            with contextlib.suppress(loop.OutOfBudget):
                start, budget = {"sum": jnp.float32(0)}, runtime.Budget(max_steps=steps)
                loop.run(tmp_path / folder, long, start, step_fn, first_step=0, num_tokens=0, budget=budget)
        assert scored(tmp_path / folder) == {2: -1.5, 6: -5.5, 7: None}
