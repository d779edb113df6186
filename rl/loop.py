"""The loop every training stage shares: resume, step, log, save, stop when told to.

A stage's step is a function (state, step) -> (state, metrics) of the step's number and nothing else that moves, so the
step is the data cursor, the curriculum's clock and the random stream's position at once: saving it saves them all.

An update with something that is not finite is not made, and its step says so (`fault` of its row).  It is saved where
the call or the stage ends only, and after `max_bad_steps` in a row the run stops: what is on disk is from before.

A step is saved as a whole or not at all: what a kill leaves half done, its samples and the updates made with them, is
done again by the next call, and comes out the same.  A step that is to be left (`runtime.Stopped`) says so before its
first update, so that the state of the step before is still there to be saved.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from thinkfirst.core import checkpoint, hosts, metrics, profiling, runtime
from thinkfirst.rl import guard, identity, stages

State = Any  # a pytree: what the optimiser changes
Step = Callable[[State, int], tuple[State, dict[str, Any], list[dict[str, Any]]]]

SHOWN = ("phase", "loss", "reward", "rewards/correctness/mean", "rewards/trace/mean", "rewards/format/mean", "kl")
TrainingStage = stages.Pretrain | stages.Sft | stages.Grpo


class OutOfBudget(Exception):
    """A limit was reached, or the process was told to end; everything is saved and the next call goes on from here."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """What became of a stage."""

    state: State
    seconds: float
    num_tokens: int


@dataclasses.dataclass
class Counters:
    """What a stage has counted, saved with its state.  `scores` are of the steps since the last `save_every`."""

    num_tokens: int
    seconds: float = 0.0
    bad_steps: int = 0
    scores: list[float] = dataclasses.field(default_factory=list)

    def count(self, row: Mapping[str, Any], elapsed: float, score: float) -> None:
        """Adds a step."""
        self.seconds += elapsed
        self.num_tokens += row["tokens_of_step"]
        self.bad_steps = self.bad_steps + 1 if row.get("fault") else 0
        self.scores.append(score)


def folder(workdir: pathlib.Path, stage: TrainingStage) -> pathlib.Path:
    """Where a stage's checkpoints lie."""
    return workdir / "checkpoints" / stage.name


def newest(workdir: pathlib.Path, stage: TrainingStage) -> int:
    """The last step of a stage that is on disk, 0 when there is none."""
    with contextlib.closing(checkpoint.Checkpoints(folder(workdir, stage))) as saved:
        return max(saved.steps(), default=0)


def restore(
    workdir: pathlib.Path, stage: TrainingStage, like: State, step: int, *, made_of: Mapping[str, str] | None = None
) -> Finished:
    """A stage as an earlier call left it after `step`."""
    with contextlib.closing(checkpoint.Checkpoints(folder(workdir, stage))) as saved:
        state, meta = saved.restore(step, like)
    identity.check(meta["made_of"], made_of or {}, str(folder(workdir, stage) / str(step)))
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
    keep: checkpoint.Keep | None = None,
    written: Callable[[], object] = lambda: None,
    made_of: Mapping[str, str] | None = None,
    profiled: profiling.Window = profiling.NOTHING,
) -> Finished:
    """Takes the stage from its newest sound checkpoint to its end; `first_step` steps were taken before the stage.

    `keep` says which steps stay on disk, `made_of` what the state belongs to (rl/identity.py); `written` is called when
    a step is on disk (core/checkpoint.py).  `profiled` sees every step.
    """
    saved = checkpoint.Checkpoints(folder(workdir, stage), keep=keep, written=written)
    done, state, counters = _begin(saved, stage, state, num_tokens, made_of or {})
    if done:
        where = f"step {first_step + done} ({done} of {stage.steps} of this stage)"
        hosts.say(f"{stage.name}: resumes from {where}")
    if done < stage.steps and budget.spent():
        raise OutOfBudget
    writer = metrics.Writer(workdir, step=first_step + done) if hosts.is_first() else metrics.Nowhere()
    bar = metrics.progress(stage.name, done, stage.steps)
    on_disk = done

    def save(step: int) -> None:
        writer.sync()
        score = float(np.mean(counters.scores)) if step % stage.save_every == 0 else None
        meta = {**dataclasses.asdict(counters), "made_of": dict(made_of or {}), "versions": runtime.versions()}
        saved.save(step, state, meta, score=score)

    try:
        for step in range(done + 1, stage.steps + 1):
            with profiled.step(first_step + step):
                budget.beat(f"{stage.name}: step {step}")
                start = time.perf_counter()
                try:
                    with jax.transfer_guard("disallow"):  # what moves between host and device says so
                        state, row, completions = step_fn(state, step)
                except runtime.Stopped as stopped:  # the state is still that of the step before
                    if step - 1 > on_disk:
                        save(step - 1)
                    saved.wait(last=True)
                    raise OutOfBudget from stopped
                elapsed = time.perf_counter() - start
                counters.count(row, elapsed, _score(row))
                place = {"step": first_step + step, "stage": stage.name, "kind": kind(stage), "stage_step": step}
                speed = row.pop("tokens_of_step") / elapsed
                fault = row.pop("fault", None)
                rate = {"num_tokens": counters.num_tokens, "step_time": elapsed, "tokens_per_second": speed}
                with profiling.phase("log"):
                    writer.completions([{**place, **completion} for completion in completions])
                    writer.scalars({**place, **row, **rate})
                    bar.set_postfix(_shown({**row, **rate}), refresh=False)
                    bar.update()
                if fault:
                    saved.wait()
                    _report(workdir, stage, fault, place, counters.bad_steps)
                budget.take()
                out_of_budget = budget.spent()
                if (step % stage.save_every == 0 and not fault) or step == stage.steps or out_of_budget:
                    with profiling.phase("save"):
                        save(step)
                    on_disk = step
                if step % stage.save_every == 0:
                    counters.scores = []
            if out_of_budget and step < stage.steps:
                saved.wait(last=True)
                raise OutOfBudget
        saved.wait(last=True)
    finally:
        bar.close()
        writer.close()
        saved.close()
        profiled.close()
    return Finished(state, counters.seconds, counters.num_tokens)


def _begin(
    saved: checkpoint.Checkpoints,
    stage: TrainingStage,
    state: State,
    num_tokens: int,
    made_of: Mapping[str, str],
) -> tuple[int, State, Counters]:
    """(steps done, state, counters) of the newest sound checkpoint, or of a stage that begins."""
    found = saved.newest(state)
    if found is None:
        return 0, state, Counters(num_tokens)
    done, state, meta = found
    identity.check(meta["made_of"], made_of, f"{stage.name}, step {done}")
    counters = Counters(**{field.name: meta[field.name] for field in dataclasses.fields(Counters)})
    if done % stage.save_every == 0:
        counters.scores = []
    return done, state, counters


def _score(row: Mapping[str, Any]) -> float:
    """What the best checkpoint has most of."""
    return row["reward"] if "reward" in row else -row["loss"]


def kind(stage: stages.Stage) -> str:
    """Lower-case name of a stage's class."""
    return type(stage).__name__.lower()


def _report(
    workdir: pathlib.Path, stage: TrainingStage, fault: guard.Fault, place: dict[str, Any], bad_steps: int
) -> None:
    """Keeps the batch of a bad step and says so; raises guard.TooManyBadSteps once there were too many in a row."""
    path = guard.place_of(workdir, place)
    if hosts.is_first():
        guard.write(workdir, fault, place)
    about = f"{stage.name}: step {place['step']} was not finite: {fault}; no such update was made; its batch is {path}"
    hosts.say(about)
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
