"""Useful tokens per second of whole GRPO steps, ours and Tunix's: rollout, rewards, scoring and update, in turn.

The same weights, prompts, samples of each, limits, reward, objective and optimiser.  Before anything is timed Tunix
takes a small step, and what it sampled must have here the log-probs, advantages and loss that it has there.

Each side is given the sizes it is fastest with: how many rows go through the model at once.  LoRA is on all
projections; Tunix's keys and values share a factor.  What of a step is rollout, and what the rest, is told for both.
"""

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from thinkfirst.core import mesh, runtime, sharding
from thinkfirst.launch.benchmarks import peer_process, rollouts
from thinkfirst.models import gemma, weights
from thinkfirst.rl import (
    advantage,
    batch,
    curriculum,
    learner,
    objective,
    optimizer,
    packing,
    policy,
    rollout,
    stages,
    trainer,
)
from thinkfirst.rl.data import source
from thinkfirst.rl.rewards import parse, reward

RANK, ALPHA = 16, 16.0
ROOM = 96  # the most new tokens: with the prompt 128
OUR_SIZES = ((0, 4), (128, 1), (128, 2))  # (tokens of a row of packed samples, or 0: a sample a row; micro-batches)
PEER_UPDATE = (1, 2)  # prompts of a micro-batch
PEER_ROLLOUT = (1, 2)  # all prompts at once, half of them
LOGPROB, LOSS = 1e-3, 1e-4
CHECKED = rollouts.Case("checked", 2, 4, 16, (3, 8, 5, 8, 2, 7, 4, 6))


def cases() -> tuple[rollouts.Case, ...]:
    """Four prompts of eight samples each: of one length, and every eighth length of rollouts's long tail."""
    equal, tail = rollouts.cases()
    short = dataclasses.replace(equal, num_prompts=4, limits=(32,) * 32, prompt_tokens=32)
    longest_of_eight = np.minimum(np.sort(tail.limits)[7::8], ROOM)
    limits = tuple(np.random.default_rng(0).permutation(longest_of_eight).tolist())
    return short, dataclasses.replace(tail, num_prompts=4, limits=limits)


def share_of_even(ids: Sequence[int]) -> float:
    """The reward: peers/tunix_step.py has the same."""
    return sum(token % 2 == 0 for token in ids) / len(ids)


class Subject(policy.Policy):
    """A policy whose prompts and limits are those of a case; text is ids with spaces between, as it is for the peer."""

    case: rollouts.Case

    def prompts(self, problems: Sequence[batch.Problem]) -> batch.Prompts:
        """The prompts of the case, whatever the problems."""
        return self.case.prompts()

    def engine(self, room: int) -> rollout.Engine:
        """The engine, held to the limits of the case."""
        if room not in self._engines:
            engine = Limited(self.model, self.mesh, room=room, stop_ids=(), lanes=self.lanes)
            engine.limits = np.array(self.case.limits, np.int32)
            self._engines[room] = engine
        return self._engines[room]

    def completions(self, rollout: batch.Rollout) -> list[batch.Completion]:
        """Ids with spaces between them."""
        rows = zip(rollout.tokens_BT, rollout.logp_BT, rollout.length_B, strict=True)
        return [
            batch.Completion(
                " ".join(map(str, tokens_T[:length].tolist())),
                ((0, 0),) * int(length),
                tuple(map(float, logp_T[:length])),
                stopped=False,
            )
            for tokens_T, logp_T, length in rows
        ]


class Limited(rollout.Engine):
    """An engine that ends every row at a limit of its own."""

    limits: np.ndarray

    def sample(self, *given: Any, **named: Any) -> batch.Rollout:
        """What the engine samples up to those limits; ValueError if a row ended elsewhere."""
        params, adapter, prompts, sampling, key = given
        sampling = dataclasses.replace(sampling, max_new_tokens=self.limits)
        found = super().sample(params, adapter, prompts, sampling, key, **named)
        if (other := found.length_B != self.limits).any():
            raise ValueError(f"row {other.argmax()} did not end at its limit")
        return found


def stage(case: rollouts.Case, *, row_tokens: int = 0, micro_batches: int = 1) -> stages.Grpo:
    """The step: a mean over all tokens, KL k3."""
    unused = curriculum.Anneal(0.0, 0.0, 1)
    return stages.Grpo(
        optimizer=optimizer.OptimizerConfig(1e-5, warmup=0.0, weight_decay=0.1, clip_norm=0.1),
        phases=(curriculum.Phase("all", 0, ("easy",)),),
        rewards=stages.RewardSchedule(unused, unused, unused, unused),
        loss=objective.LossConfig(beta=0.04, kl="k3", average="token"),
        lora=stages.LoraConfig(rank=RANK, alpha=ALPHA),
        steps=1000,
        prompts=case.num_prompts,
        group=case.group,
        max_new_tokens=max(case.limits),
        row_tokens=row_tokens,
        micro_batches=micro_batches,
    )


def sampling(case: rollouts.Case) -> batch.Sampling:
    """As the trainer samples."""
    return batch.Sampling.of(max_new_tokens=max(case.limits))


def grade(rows: Sequence[tuple[batch.Problem, batch.Completion]], *, step: int, phase: str) -> list[reward.Graded]:
    """Every completion's share of even ids."""
    parsed = parse.parse(batch.Completion("", (), ()))
    return [reward.Graded(share_of_even([*map(int, found.text.split())]), {}, parsed) for _, found in rows]


class Ours:
    """The trainer's own step."""

    def __init__(self, params: gemma.Params) -> None:
        self._mesh = mesh.make(mesh.MeshConfig())
        self._model = gemma.Model(rollouts.model(), self._mesh)
        self._params = jax.device_put(params, sharding.replicated(self._mesh))

    def subject(self, case: rollouts.Case) -> Subject:
        """The model for a case."""
        lanes = rollouts.LANES // mesh.num_row_shards(self._mesh)
        found = Subject(self._model, None, self._mesh, self._params, (), lanes=lanes)
        found.case = case
        return found

    def side(
        self, case: rollouts.Case, seconds: list[dict[str, float]]
    ) -> Callable[[tuple[int, int]], rollouts.Side]:
        """side((row_tokens, micro_batches)) -> runs of a step; what each phase took is added to `seconds`."""
        subject, problems = self.subject(case), source.make(source.DataConfig(), 0)

        def of(size: tuple[int, int]) -> rollouts.Side:
            chosen = stage(case, row_tokens=size[0], micro_batches=size[1])
            transform, key = optimizer.make(chosen.optimizer, chosen.steps), jax.random.key(7)
            step = trainer.make_grpo_step(subject, chosen, problems, key, transform, remat="none", grade=grade)
            fresh = subject.fresh_adapter(chosen.lora, jax.random.key(1))
            state, number = (fresh, trainer.init_optimizer(transform, fresh, subject)), itertools.count(1)

            def run() -> rollouts.Spent:
                nonlocal state
                start, cpu_start = time.perf_counter(), time.process_time()
                state, metrics, _ = step(state, next(number))
                jax.block_until_ready(state)
                spent = rollouts.Spent(time.perf_counter() - start, time.process_time() - cpu_start)
                if metrics["skipped"]:
                    raise ValueError(f"{case.name}: an update was not made: {metrics['fault']}")
                seconds.append({name: metrics[f"time/{name}"] for name in ("rollout", "reward", "update")})
                return spent

            return run

        return of

    def judged(self, case: rollouts.Case, tokens: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Log-probs, advantages and loss of completions that the peer has sampled."""
        width, lengths = max(case.limits), np.array([len(row) for row in tokens], np.int32)
        tokens_BT = np.array([[*row, *[0] * (width - len(row))] for row in tokens], np.int32)
        scores_PG = np.array([share_of_even(row) for row in tokens]).reshape(case.num_prompts, case.group)
        advantage_B, none_BT = advantage.group_relative(scores_PG).reshape(-1), np.zeros(tokens_BT.shape, np.float32)
        sampled = batch.Rollout(tokens_BT, none_BT, none_BT, lengths, lengths < 0)
        taught = batch.samples(batch.unpadded(case.prompts()), sampled, advantage_B)
        plan = packing.one_a_row(len(taught), row_tokens=case.prompt_tokens + width, room=width)
        known = sharding.spread(packing.experience(taught, plan, truncated=False), self._mesh)
        one = sharding.everywhere(np.float32(1.0), self._mesh)
        logp_BT = learner.make_scorer(self._model, micro_batches=1)(None, self._params, known, one)
        known = dataclasses.replace(known, old_logp_BT=logp_BT)
        chosen, subject = stage(case), self.subject(case)
        transform = optimizer.make(chosen.optimizer, 1)
        fresh = subject.fresh_adapter(chosen.lora, jax.random.key(1))
        step = learner.make_step(self._model, transform, chosen.loss, micro_batches=1, remat="none")
        state = (fresh, trainer.init_optimizer(transform, fresh, subject))
        loss = float(step(*state, self._params, known, one)[2]["loss"])
        return {"logp": np.asarray(logp_BT), "advantages": advantage_B, "loss": loss}


def request(
    case: rollouts.Case, *, update_prompts: int, rollout_prompts: int, details: bool = False
) -> dict[str, Any]:
    """What the peer is asked for."""
    chosen = stage(case)
    return {
        "do": "step",
        "prompts": case.prompts().tokens_PT.tolist(),
        "group": case.group,
        "limits": case.limits,
        "room": max(case.limits),
        "update": update_prompts,
        "rollout": rollout_prompts,
        "settings": {
            "rank": RANK,
            "alpha": ALPHA,
            "temperature": chosen.temperature,
            "beta": chosen.loss.beta,
            "clip": chosen.loss.clip_low,
            "learning_rate": chosen.optimizer.learning_rate,
            "weight_decay": chosen.optimizer.weight_decay,
            "clip_norm": chosen.optimizer.clip_norm,
        },
        "details": details,
    }


def check(ours: Ours, peer: peer_process.Peer) -> None:
    """ValueError unless a step of the peer's has here the log-probs, advantages and loss that it has there."""
    asked = request(CHECKED, update_prompts=CHECKED.num_prompts, rollout_prompts=CHECKED.num_prompts, details=True)
    theirs = peer.ask(asked)
    mine = ours.judged(CHECKED, theirs["tokens"])
    logp = max(
        float(np.abs(mine_T[: len(theirs_T)] - theirs_T).max())
        for mine_T, theirs_T in zip(mine["logp"], theirs["logp"], strict=True)
    )
    off = {
        "log-probs": (logp, LOGPROB),
        "advantages": (float(np.abs(mine["advantages"] - theirs["advantages"]).max()), LOSS),
        "the loss": (abs(mine["loss"] - theirs["loss"]), LOSS),
    }
    for name, (gap, most) in off.items():
        if not gap <= most:
            raise ValueError(f"{name} of {peer.name}'s samples differ by {gap:.2g}, nothing is timed")
    told = ", ".join(f"{name} to {gap:.1g}" for name, (gap, _) in off.items())
    print(f"checked: what {peer.name} sampled is worth the same here ({told}; loss {mine['loss']:.4f})", flush=True)


def peer_side(peer: peer_process.Peer, case: rollouts.Case, seconds: list[dict[str, float]]) -> rollouts.Side:
    """Steps of the peer with the sizes it is fastest with, compiled; what its rollouts took is added to `seconds`."""

    def side(update_prompts: int, rollout_prompts: int) -> rollouts.Side:
        asked = request(case, update_prompts=update_prompts, rollout_prompts=rollout_prompts)

        def run() -> rollouts.Spent:
            answer = peer.ask(asked)
            whole, sampling = answer["seconds"], answer["rollout_seconds"]
            seconds.append({"rollout": sampling, "rest": whole - sampling})
            return rollouts.Spent(whole, answer["cpu_seconds"])

        return run

    parts = [-(-case.num_prompts // divided) for divided in PEER_ROLLOUT]
    sides = {(update, sampled): side(update, sampled) for update in PEER_UPDATE for sampled in parts}
    best = rollouts.fastest(sides)
    print(f"{case.name}: {peer.name} samples {best[1]} prompts at a time, and learns from {best[0]}", flush=True)
    return sides[best]


def run(repeats: int, peer: peer_process.Peer | None, *, cases: Sequence[rollouts.Case]) -> list[dict[str, Any]]:
    """A figure for each case; ValueError, with nothing timed, if the two do not compute the same."""
    params = rollouts.parameters()
    ours, versions = Ours(params), {"ours": runtime.versions()}
    if peer:
        with tempfile.TemporaryDirectory() as scratch:
            weights.save(f"{scratch}/gemma", gemma.Model(rollouts.model()), params)
            sizes = rollouts.tunix_sizes(rollouts.model())
            asked = {"do": "load", "weights": f"{scratch}/gemma", "sizes": sizes}
            versions["peer"] = peer.ask(asked)["versions"]
        check(ours, peer)
    figures = []
    for case in cases:
        seconds: dict[str, list[dict[str, float]]] = {"ours": []}
        side_of = ours.side(case, seconds["ours"])
        tried = {size: side_of(size) for size in OUR_SIZES}
        best = rollouts.fastest(tried)
        rows = f"rows of {best[0]} tokens, packed" if best[0] else "rows of a sample each"
        print(f"{case.name}: ours learns from {rows}, in {best[1]} micro-batches", flush=True)
        sides = {"ours": tried[best]}
        if peer:
            seconds["peer"] = []
            sides["peer"] = peer_side(peer, case, seconds["peer"])
        medians = rollouts.interleaved(sides, repeats)
        phases = {name: _medians(spent[-repeats:]) for name, spent in seconds.items()}
        figures.append({**rollouts.figure(case, medians, versions), "phases": phases})
        print(rollouts.report(case, medians), flush=True)
        for name, of in phases.items():
            print(f"  {name}: " + ", ".join(f"{phase} {spent:.2f} s" for phase, spent in of.items()), flush=True)
    return figures


def _medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of every entry."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}
