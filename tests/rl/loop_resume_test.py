"""The bugs of resuming that others have had, one test each, on a loop that takes its rows from real files.

Six problems, two a step: an epoch is three steps.  The state is the list of rows that were trained on, so that what was
skipped, repeated or reordered shows.  Of updates with several iterations: tests/rl/pipeline_grpo_test.py and, killed
between them, tests/crash; of rows spread over hosts: tests/system/hosts_test.py.
"""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.core import runtime
from thinkfirst.rl import loop, optimizer, stages
from thinkfirst.rl.data import source

STEPS, BATCH = 9, 2
STAGE = stages.Sft(optimizer.OptimizerConfig(1e-3), steps=STEPS, batch_size=BATCH, save_every=3)

note = jax.jit(lambda seen, place, rows: jax.lax.dynamic_update_slice(seen, rows, (place,)))


def data(folder, count=6, *, first=0):
    folder.mkdir(exist_ok=True)
    for name, numbers in (("train", range(first, first + count)), ("eval", [99])):
        rows = [{"id": str(n), "question": f"What is {n}?", "answer": str(n), "completion": "x"} for n in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = source.DataConfig(kind="jsonl", train=f"{folder}/train.jsonl", eval=f"{folder}/eval.jsonl")
    return source.make(files, 0)


def run(workdir, problems, *, max_steps=0, leave=0):
    """Answers of the rows trained on, in order, or None when the call was cut short; `leave`s that step half done."""

    def step_fn(state, step):
        indices = range((step - 1) * BATCH, step * BATCH)
        rows = np.array([int(problems.demonstration(index).problem.answer) for index in indices], np.int32)
        if step == leave:
            raise runtime.Stopped("rewards")
        seen = note(state["seen"], jax.device_put(np.int32((step - 1) * BATCH)), jax.device_put(rows))
        return {"seen": seen}, {"loss": float(rows.sum()), "tokens_of_step": 1}, []

    start = {"seen": jnp.full(STEPS * BATCH, -1, jnp.int32)}
    budget = runtime.Budget(max_steps=max_steps)
    with contextlib.suppress(loop.OutOfBudget):
        made_of = {"data": problems.fingerprint()}
        done = loop.run(workdir, STAGE, start, step_fn, first_step=0, num_tokens=0, budget=budget, made_of=made_of)
        return np.asarray(done.state["seen"]).tolist()
    return None


@pytest.fixture
def straight(tmp_path):
    found = run(tmp_path / "straight", data(tmp_path / "data"))
    for epoch in range(3):
        assert sorted(found[epoch * 6 : epoch * 6 + 6]) == list(range(6))
    assert found[:6] != found[6:12]
    return found


def test_a_save_at_an_epochs_end_skips_no_epoch(tmp_path, straight):
    """verl 5725, 7401, 7974: resuming there did no update at all, with exit status 0."""
    workdir, problems = tmp_path / "run", data(tmp_path / "data")
    assert run(workdir, problems, max_steps=3) is None
    assert run(workdir, data(tmp_path / "data"), max_steps=3) is None
    assert run(workdir, data(tmp_path / "data")) == straight


def test_any_step_is_gone_on_from(tmp_path, straight):
    """open-instruct 1523: the position was not restored; prime-rl 3299: rows were drawn before it was."""
    workdir = tmp_path / "run"
    for _ in range(STEPS - 1):
        assert run(workdir, data(tmp_path / "data"), max_steps=1) is None
    assert run(workdir, data(tmp_path / "data")) == straight


def test_rows_that_were_drawn_and_not_trained_on_are_drawn_again(tmp_path, straight):
    """NeMo-RL 3599: the cursor was where drawing had got to, not training."""
    workdir, problems = tmp_path / "run", data(tmp_path / "data")
    for leave in (2, 5, 5, 7):
        assert run(workdir, problems, leave=leave) is None
    assert run(workdir, problems) == straight


@pytest.mark.parametrize(("count", "first"), [(4, 0), (9, 0), (6, 1)])
def test_other_rows_are_refused_fewer_more_or_as_many(tmp_path, count, first):
    """NeMo-RL 2519: as many rows of another file were skipped as had been trained on of the first."""
    workdir = tmp_path / "run"
    assert run(workdir, data(tmp_path / "data"), max_steps=4) is None
    with pytest.raises(ValueError, match=r"sft, step 4: made with another data \w+ -> \w+; put the old one back"):
        run(workdir, data(tmp_path / "data", count, first=first))


def test_every_resume_tells_its_own_step(tmp_path, capsys):
    """torchtitan 571: a second resume told the step of the first."""
    for _ in range(4):
        run(tmp_path / "run", data(tmp_path / "data"), max_steps=2)
    said = [line for line in capsys.readouterr().out.splitlines() if "resumes" in line]
    assert said == [f"sft: resumes from step {step} ({step} of 9 of this stage)" for step in (2, 4, 6)]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))
