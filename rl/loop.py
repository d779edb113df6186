"""The loop every training stage shares: resume, step, log, save, stop when told to.

A stage's step is a function (state, step) -> (state, metrics) of the step's number and nothing else that moves, so the
step is the data cursor, the curriculum's clock and the random stream's position at once: saving it saves them all.

An update with something that is not finite is not made, and its step says so (`fault` of its row).  It is saved where
the call or the stage ends only, and after `max_bad_steps` in a row the run stops: what is on disk is from before.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from thinkfirst.core import checkpoint, metrics, runtime
from thinkfirst.rl import guard, stages

State = Any  # a pytree: what the optimiser changes
Step = Callable[[State, int], tuple[State, dict[str, Any], list[dict[str, Any]]]]

SHOWN = ("phase", "loss", "reward", "rewards/correctness/mean", "rewards/trace/mean", "rewards/format/mean", "kl")
TrainingStage = stages.Pretrain | stages.Sft | stages.Grpo


class OutOfBudget(Exception):
    """--max_steps or --max_seconds was reached; everything is saved and the next call goes on from here."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """What became of a stage."""

    state: State
    seconds: float
    num_tokens: int


def folder(workdir: pathlib.Path, stage: TrainingStage) -> pathlib.Path:
    """Where a stage's checkpoints lie."""
    return workdir / "checkpoints" / stage.name


def newest(workdir: pathlib.Path, stage: TrainingStage) -> int:
    """The last step of a stage that is on disk, 0 when there is none."""
    return max(checkpoint.Checkpoints(folder(workdir, stage)).steps(), default=0)


def restore(workdir: pathlib.Path, stage: TrainingStage, like: State, step: int) -> Finished:
    """A stage as an earlier call left it after `step`."""
    state, meta = checkpoint.Checkpoints(folder(workdir, stage)).restore(step, like)
    return Finished(state, meta["seconds"], meta["num_tokens"])


def run(
    workdir: pathlib.Path,
    stage: TrainingStage,
    state: State,
    step_fn: Step,
    *,
    first_step: int,
    num_tokens: int,
    budget: runtime.Budget,
) -> Finished:
    """Takes the stage from its newest checkpoint to its end; `first_step` steps were taken before the stage."""
    saved = checkpoint.Checkpoints(folder(workdir, stage))
    done, seconds, bad_steps = newest(workdir, stage), 0.0, 0
    if done:
        state, meta = saved.restore(done, state)
        seconds, num_tokens, bad_steps = meta["seconds"], meta["num_tokens"], meta.get("bad_steps", 0)
        where = f"step {first_step + done} ({done} of {stage.steps} of this stage)"
        print(f"{stage.name}: resumes from {where}", flush=True)
    if done < stage.steps and budget.spent():
        raise OutOfBudget
    writer = metrics.Writer(workdir, step=first_step + done)
    bar = metrics.progress(stage.name, done, stage.steps)
    try:
        for step in range(done + 1, stage.steps + 1):
            start = time.perf_counter()
            with jax.transfer_guard("disallow"):  # what moves between host and device says so
                state, row, completions = step_fn(state, step)
            elapsed = time.perf_counter() - start
            seconds += elapsed
            num_tokens += row["tokens_of_step"]
            place = {"step": first_step + step, "stage": stage.name, "kind": kind(stage), "stage_step": step}
            speed = row.pop("tokens_of_step") / elapsed
            fault = row.pop("fault", None)
            bad_steps = bad_steps + 1 if fault else 0
            rate = {"num_tokens": num_tokens, "step_time": elapsed, "tokens_per_second": speed}
            writer.completions([{**place, **completion} for completion in completions])
            writer.scalars({**place, **row, **rate})
            bar.set_postfix(_shown({**row, **rate}), refresh=False)
            bar.update()
            if fault:
                _report(workdir, stage, fault, place, bad_steps)
            budget.take()
            out_of_budget = budget.spent()
            if (step % stage.save_every == 0 and not fault) or step == stage.steps or out_of_budget:
                saved.save(step, state, {"seconds": seconds, "num_tokens": num_tokens, "bad_steps": bad_steps})
            if out_of_budget and step < stage.steps:
                raise OutOfBudget
    finally:
        bar.close()
        writer.close()
    return Finished(state, seconds, num_tokens)


def kind(stage: stages.Stage) -> str:
    """Lower-case name of a stage's class."""
    return type(stage).__name__.lower()


def _report(
    workdir: pathlib.Path, stage: TrainingStage, fault: guard.Fault, place: dict[str, Any], bad_steps: int
) -> None:
    """Keeps the batch of a bad step and says so; raises guard.TooManyBadSteps once there were too many in a row."""
    path = guard.write(workdir, fault, place)
    about = f"{stage.name}: step {place['step']} was not finite: {fault}; no such update was made; its batch is {path}"
    print(about, flush=True)
    if bad_steps >= stage.max_bad_steps:
        last = newest(workdir, stage)
        where = folder(workdir, stage) / str(last) if last else "none was saved"
        raise guard.TooManyBadSteps(f"{about}; {bad_steps} such steps in a row end the run; last good state: {where}")


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """The few metrics a progress bar has room for."""
    short = {name: name.removeprefix("rewards/").removesuffix("/mean") for name in SHOWN}
    picked = {short[name]: row[name] for name in SHOWN if name in row}
    picked["tok/s"] = round(row["tokens_per_second"])
    if "rollout/occupancy" in row:
        picked["busy"] = row["rollout/occupancy"]
    return {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in picked.items()}
