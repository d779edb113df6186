"""Held-out accuracy against seconds: our GRPO and Tunix's, from one checkpoint, on the demo's task, with equal budgets.

Both begin with the recipe's base after its SFT stage, and with a fresh adapter of one rank.  At every step both are
given the same problems, sample as many completions of at most as many tokens, are paid by the same reward function
(here, for both) and take one update with the same rate, clips and KL term.  Every few steps both answer the held-out
problems, each by its own sampler, and are marked here; that takes no time of theirs, but for what Tunix compiles then
and trains with later.  Seconds of compilation are told apart from the others.  peers/tunix_learning.py says which of
Tunix's ways are kept; its LoRA starts from Qwix's own draw of factors, of the same rank.

A run of a side with a seed is a file; one that is there is not run again.
"""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from thinkfirst.core import config as config_lib
from thinkfirst.core import files, runtime, sharding
from thinkfirst.launch.benchmarks import learning_curve, peer_process, rollouts, timing
from thinkfirst.rl import (
    batch,
    curriculum,
    evaluate,
    grading,
    learner,
    loading,
    marking,
    objective,
    optimizer,
    packing,
    pipeline,
    policy,
    samples,
    stages,
    trainer,
)
from thinkfirst.rl.data import source

SCRIPT = "tunix_learning.py"
SAMPLES = 4  # of every held-out problem, at the temperature of training
LOGPROB = 1e-3  # nats between what the peer sampled from and what the same weights say here
UPDATE_PARTS = 2  # micro-batches of a peer's step: of 1, 2 and 4 it took the least CPU time with two
AVERAGES = {"sequence": "sequence-mean-token-mean", "token": "token-mean"}


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learnt, and how often it is looked at."""

    config: stages.RunConfig
    every: int

    @property
    def sft(self) -> stages.Sft:
        return next(stage for stage in self.config.stages if isinstance(stage, stages.Sft))

    @property
    def grpo(self) -> stages.Grpo:
        return next(stage for stage in self.config.stages if isinstance(stage, stages.Grpo))

    def described(self) -> dict[str, Any]:
        """What two runs must have in common to be compared."""
        return {"recipe": self.config.recipe, "settings": config_lib.digest(self.config), "every": self.every}


class Taken(NamedTuple):
    """What a step took, and what it sampled."""

    seconds: float
    cpu_seconds: float
    compile_seconds: float
    tokens: int
    reward: float

    def then(self, after: "Taken") -> "Taken":
        """Both, and the reward of the later one."""
        return Taken(
            self.seconds + after.seconds,
            self.cpu_seconds + after.cpu_seconds,
            self.compile_seconds + after.compile_seconds,
            self.tokens + after.tokens,
            after.reward,
        )


@runtime_checkable
class Side(Protocol):
    """A training run that can be looked at between its steps."""

    versions: dict[str, Any]

    def step(self, number: int) -> Taken: ...

    def answers(self, problems: Sequence[batch.Problem]) -> list[batch.Completion]:
        """SAMPLES completions of every problem, problem by problem."""
        ...


def prepared(task: Task, workdir: pathlib.Path) -> pathlib.Path:
    """The folder of the checkpoint that both begin with: the base after SFT, merged.  A finished one is kept."""
    folder = workdir / "base"
    before = (task.sft, stages.Merge(), stages.Export(folder=str(folder)))
    pipeline.run(dataclasses.replace(task.config, stages=before), workdir / "sft", runtime.Budget())
    return folder


class Ours:
    """The trainer's own step."""

    def __init__(self, task: Task, subject: policy.Policy, seed: int) -> None:
        stage, self.versions = task.grpo, runtime.versions()
        self._subject, self._stage, self._seed = dataclasses.replace(subject), stage, seed
        root = jax.random.key(seed)
        transform = optimizer.make(stage.optimizer, stages.num_updates(stage))
        problems = source.make(task.config.data, seed)
        self._step = trainer.make_grpo_step(self._subject, stage, problems, root, transform, remat="none")
        fresh = self._subject.fresh_adapter(stage.lora, jax.random.fold_in(root, 0))
        self._state = (fresh, trainer.init_optimizer(transform, fresh, self._subject))

    def step(self, number: int) -> Taken:
        """A step of training; ValueError where something was not finite."""
        with timing.Compiling() as compiling:
            start, cpu_start = time.perf_counter(), time.process_time()
            self._state, row, _ = self._step(self._state, number)
            jax.block_until_ready(self._state)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        if row["fault"]:
            raise ValueError(f"step {number} was not made: {row['fault']}")
        tokens = round(row["completions/mean_length"] * self._stage.prompts * self._stage.group)
        return Taken(seconds, cpu_seconds, timing.covered(compiling.spans), tokens, row["reward"])

    def answers(self, problems: Sequence[batch.Problem]) -> list[batch.Completion]:
        """By the engine of training."""
        stage, subject = self._stage, self._subject
        subject.adapter = self._state[0]
        sampling = batch.Sampling.of(temperature=stage.temperature, max_new_tokens=stage.max_new_tokens)
        prompts, key = subject.prompts(problems), jax.random.key(self._seed)
        return subject.completions(
            subject.sample(prompts, sampling, key, group=SAMPLES, room=stage.max_new_tokens)
        )


class Theirs:
    """Tunix's step, in its own process; problems and rewards are given from here."""

    def __init__(self, task: Task, subject: policy.Policy, seed: int, peer: peer_process.Peer) -> None:
        self._stage, self._subject, self._peer, self._seed = task.grpo, subject, peer, seed
        self._problems = source.make(task.config.data, seed)
        self._grade = grading.make(self._stage)
        self._owed = 0.0  # seconds of compilation for training's own program, where an evaluation was first to ask
        asked = {
            "do": "load",
            "weights": subject.source,
            "sizes": rollouts.tunix_sizes(subject.model.config),
            "pattern": subject.model.config.pattern,
            "stop_ids": subject.stop_ids,
            "settings": settings(self._stage, seed, prompt_tokens=subject.max_prompt_tokens),
        }
        self.versions = {**peer.ask(asked)["versions"], "device": runtime.versions()["device"]}

    def step(self, number: int) -> Taken:
        """Sampled there, graded here, learnt there; the grading counts.  ValueError where the policy is not the base's
        at the first step, or still is after some."""
        asked = samples.draw(self._problems, self._stage, number)
        prompts = batch.unpadded(self._subject.prompts(asked))
        sampled = self._peer.ask({"do": "sample", "prompts": prompts})
        if number == 1 or number == self._stage.steps:
            self._check(prompts, sampled, number)
        completions = self._completions(sampled)
        start, cpu_start = time.perf_counter(), time.process_time()
        rows = [(asked[row // self._stage.group], completion) for row, completion in enumerate(completions)]
        phase = curriculum.phase_at(self._stage.phases, number).name
        totals = [float(graded.total or 0.0) for graded in self._grade(rows, step=number, phase=phase)]
        graded = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
        learnt = self._peer.ask({"do": "learn", "rewards": totals})
        parts, owed, self._owed = (sampled, graded, learnt), self._owed, 0.0
        return Taken(
            owed + sum(part["seconds"] for part in parts),
            sum(part["cpu_seconds"] for part in parts),
            owed + timing.covered(tuple(span) for part in (sampled, learnt) for span in part["compiling"]),
            sum(len(completion.spans) + completion.stopped for completion in completions),
            float(np.mean(totals)),
        )

    def answers(self, problems: Sequence[batch.Problem]) -> list[batch.Completion]:
        """By Tunix's sampler."""
        prompts = batch.unpadded(self._subject.prompts(problems))
        rows = [prompt for prompt in prompts for _ in range(SAMPLES)]
        found = self._peer.ask({"do": "evaluate", "prompts": rows, "seed": self._seed})
        self._owed += timing.covered(map(tuple, found["compiling"]))
        return self._completions(found)

    def _completions(self, sampled: dict[str, Any]) -> list[batch.Completion]:
        rows = arrays(sampled["tokens"], sampled["logp"], room=self._stage.max_new_tokens)
        return self._subject.completions(rows)

    def _check(self, prompts: Sequence[Sequence[int]], sampled: dict[str, Any], number: int) -> None:
        gap = distance(self._subject, prompts, sampled, room=self._stage.max_new_tokens)
        if number == 1 and not gap <= LOGPROB:
            raise ValueError(f"{self._peer.name} begins with another policy: log-probs differ by {gap:.2g} nats")
        if number > 1 and not gap > LOGPROB:
            raise ValueError(f"{self._peer.name} has learnt, and still samples from the policy it began with")


def settings(stage: stages.Grpo, seed: int, *, prompt_tokens: int) -> dict[str, Any]:
    """The stage's as peers/tunix_learning.py takes them; ValueError for one that Tunix's side would pass over."""
    adam, loss = stage.optimizer, stage.loss
    passed_over = {
        "num_iterations": stage.num_iterations > 1,
        "refill_tokens": stage.refill_tokens,
        "overlong": stage.overlong.buffer or stage.overlong.drop,
        "advantage": stage.advantage != "grpo",
        "top_k, top_p or min_p": (stage.top_k, stage.top_p, stage.min_p) != (0, 1.0, 0.0),
        "loss": dataclasses.replace(loss, beta=0.03, clip_low=0.2, average="own") != objective.LossConfig(),
    }
    if odd := [name for name, value in passed_over.items() if value]:
        raise ValueError(f"{stage.name}: its {odd[0]} is not what the peer's side has")
    if (average := stage.loss.averaging()) not in AVERAGES:
        raise ValueError(f"Tunix has no average {average!r} over the tokens of a batch")
    return {
        "seed": seed,
        "rank": stage.lora.rank,
        "alpha": stage.lora.alpha,
        "prompts": stage.prompts,
        "group": stage.group,
        "prompt_tokens": prompt_tokens,
        "max_new_tokens": stage.max_new_tokens,
        "temperature": stage.temperature,
        "beta": stage.loss.beta,
        "clip": stage.loss.clip_low,
        "average": AVERAGES[average],
        "rates": optimizer.rates(adam, stage.steps).tolist(),
        "adam": {"b1": adam.b1, "b2": adam.b2, "weight_decay": adam.weight_decay},
        "clip_norm": adam.clip_norm,
        "update": stage.prompts // UPDATE_PARTS,
    }


def arrays(tokens: Sequence[Sequence[int]], logp: Sequence[Sequence[float]], *, room: int) -> batch.Rollout:
    """Completions without their stop tokens as a rollout; one that is shorter than `room` has drawn one, 0 here."""
    count_B = np.array([len(row) for row in tokens], np.int32)
    stopped_B = count_B < room
    filled = lambda rows, kind: np.array([[*row, *[0] * (room - len(row))] for row in rows], kind)  # noqa: E731
    logp_BT = filled(logp, np.float32)
    return batch.Rollout(filled(tokens, np.int32), logp_BT, 0 * logp_BT, count_B + stopped_B, stopped_B)


def distance(
    subject: policy.Policy, prompts: Sequence[Sequence[int]], sampled: dict[str, Any], *, room: int
) -> float:
    """Most that the log-prob of a sampled token is off that of the base here."""
    rows = arrays(sampled["tokens"], sampled["logp"], room=room)
    known_B = rows.length_B - rows.stopped_B
    rows = dataclasses.replace(rows, length_B=known_B)
    taught = batch.samples(prompts, rows, np.ones(len(known_B), np.float32))
    plan = packing.one_a_row(len(taught), row_tokens=subject.max_prompt_tokens + room, room=room)
    known = sharding.spread(packing.experience(taught, plan, truncated=False), subject.mesh)
    one = sharding.everywhere(np.float32(1.0), subject.mesh)
    logp_BT = np.asarray(learner.make_scorer(subject.model, micro_batches=1)(None, subject.params, known, one))
    mask_BT = np.arange(room) < known_B[:, None]
    return float(np.abs(np.where(mask_BT, logp_BT[:, :room] - rows.logp_BT, 0.0)).max())


def trained(side: Side, task: Task, problems: Sequence[batch.Problem], said: str) -> list[learning_curve.Point]:
    """The whole run: a point before the first step, after every `every` steps, and after the last."""
    spent = Taken(0.0, 0.0, 0.0, 0, float("nan"))
    points = [{"step": 0, "completions": 0, **_so_far(spent), **looked_at(side, problems)}]
    for number in range(1, task.grpo.steps + 1):
        took = side.step(number)
        spent = spent.then(took)
        if number % task.every == 0 or number == task.grpo.steps:
            completions = number * task.grpo.prompts * task.grpo.group
            counts = {"step": number, "completions": completions, **_so_far(spent)}
            points.append(shown := {**counts, **looked_at(side, problems)})
            print(
                f"{said} step {number}: accuracy {shown['accuracy']:.3f}, {shown['seconds']:.1f} s and "
                f"{shown['compile_seconds']:.1f} s of compilation",
                flush=True,
            )
    return points


def looked_at(side: Side, problems: Sequence[batch.Problem]) -> dict[str, Any]:
    """What held-out problems say of the policy."""
    asked = [problem for problem in problems for _ in range(SAMPLES)]
    marked = marking.mark_all(list(zip(asked, side.answers(problems), strict=True)), "steps")
    found = evaluate.summary(marked, SAMPLES)
    return {name: found[name] for name in ("accuracy", "accuracy_strict", "format_rate")}


def _so_far(spent: Taken) -> dict[str, Any]:
    """What training took up to here; seconds are those without compilation."""
    return {
        "seconds": spent.seconds - spent.compile_seconds,
        "compile_seconds": spent.compile_seconds,
        "cpu_seconds": spent.cpu_seconds,
        "tokens": spent.tokens,
        "reward": None if math.isnan(spent.reward) else spent.reward,
    }


def run(
    task: Task, workdir: pathlib.Path, *, seeds: Sequence[int], start: Callable[[], peer_process.Peer] | None
) -> learning_curve.Runs:
    """Every run, by side and seed: those whose files are in `workdir` as they are there, the others made.

    `start` starts a peer, None leaves it out.  ValueError for a file of another task.
    """
    folder = prepared(task, workdir)
    config = dataclasses.replace(task.config, checkpoint=str(folder))
    subject = loading.from_config(config, workdir)
    problems = source.make(config.data, 0).held_out()
    found: learning_curve.Runs = {name: {} for name in (("ours", "tunix") if start else ("ours",))}
    for seed in seeds:
        for name in found:
            path = workdir / f"{name}-{seed}.json"
            if not path.is_file():
                _write(path, task, name, seed, _made(task, subject, seed, problems, start if name != "ours" else None))
            found[name][seed] = read(path, task)
    return found


def _made(
    task: Task,
    subject: policy.Policy,
    seed: int,
    problems: Sequence[batch.Problem],
    start: Callable[[], peer_process.Peer] | None,
) -> dict[str, Any]:
    """A run and what it ran with."""
    if start is None:
        ours = Ours(task, subject, seed)
        return {"versions": ours.versions, "points": trained(ours, task, problems, f"ours, seed {seed}:")}
    with start() as peer:
        theirs = Theirs(task, subject, seed, peer)
        return {"versions": theirs.versions, "points": trained(theirs, task, problems, f"tunix, seed {seed}:")}


def _write(path: pathlib.Path, task: Task, side: str, seed: int, made: dict[str, Any]) -> None:
    row = {"side": side, "seed": seed, "task": task.described(), **made}
    files.write_text(path, json.dumps(row, indent=1) + "\n")


def read(path: pathlib.Path, task: Task) -> learning_curve.Run:
    """A run's file; ValueError unless it is one, of this task."""
    try:
        found = json.loads(path.read_text())
        theirs, points = found["task"], found["points"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the file of a run ({error!r}); remove it, and it is made anew") from error
    if theirs != task.described():
        raise ValueError(f"{path}: a run of another task ({theirs}); name another --workdir, or remove the file")
    return {"versions": found["versions"], "points": points}
