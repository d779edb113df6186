"""Seconds of a GRPO update and of scoring on this machine: packed rows, a row for each sample, and written-out logits.

Samples of long-tailed lengths come from the engine.  Before anything is timed the learner must find the log-probs that
the engine drew them by, and every way must have the same gradient: the transform is plain descent, so that what it adds
to the adapter is the gradient.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from thinkfirst.core import mesh, sharding
from thinkfirst.launch.benchmarks import logprob, rollouts, roofline, steps, timing
from thinkfirst.models import gemma, lora
from thinkfirst.rl import batch, learner, objective, packing, rollout

ROW_TOKENS = 128  # of a packed row
ENGINE_GAP, WAY_GAP = 1e-4, 1e-4  # nats; parts of the largest entry of the gradient; float32
PLAIN = "logits written out"


class WrittenOut(gemma.Model):
    """The model with log-probs by way of [B, T, V] logits, for rows that were sampled from the whole vocabulary."""

    def token_logprob(
        self, params: gemma.Params, hidden_BTD: Float[Array, "B T D"], token_BT: Int[Array, "B T"], **settings: Any
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        assert not self.config.final_soft_cap and settings.get("floor_BT") is None
        return logprob.plain(hidden_BTD, params["embedding"], token_BT)


def half(case: rollouts.Case) -> rollouts.Case:
    """The case with every second prompt."""
    limits = tuple(np.array(case.limits).reshape(case.num_prompts, case.group)[::2].ravel().tolist())
    return dataclasses.replace(case, num_prompts=len(limits) // case.group, limits=limits)


class Program(NamedTuple):
    """A compiled program with what it is called on."""

    traced: Any
    executable: Any
    call: Callable[[], Any]


class Setting:
    """A model with an adapter that is not nothing, and what the engine sampled from it."""

    def __init__(self) -> None:
        self.case = half(steps.cases()[1])
        self.mesh = mesh.make(mesh.MeshConfig())
        self.model, self.plain = (kind(rollouts.model(), self.mesh) for kind in (gemma.Model, WrittenOut))
        everywhere = sharding.replicated(self.mesh)
        adapter = lora.init(self.model.adapted(), jax.random.key(1), rank=steps.RANK, alpha=steps.ALPHA)
        self.adapter = jax.device_put(jax.tree.map(lambda x: x + 0.01, adapter), everywhere)
        self.params = jax.device_put(rollouts.parameters(), everywhere)
        self.one = sharding.everywhere(np.float32(1.0), self.mesh)
        self.transform = optax.sgd(1.0)
        self.taught = self._sampled()

    def _sampled(self) -> list[batch.Sample]:
        case = self.case
        lanes = -(-len(case.limits) // mesh.num_row_shards(self.mesh))
        engine = rollout.Engine(self.model, self.mesh, room=max(case.limits), stop_ids=(), lanes=lanes)
        limits = dataclasses.replace(steps.sampling(case), max_new_tokens=np.array(case.limits, np.int32))
        found = engine.sample(self.params, self.adapter, case.prompts(), limits, jax.random.key(7), group=case.group)
        advantage_B = np.resize(np.array([1, -1], np.float32), len(case.limits))
        return batch.samples(batch.unpadded(case.prompts()), found, advantage_B)

    def rows(self, *, row_tokens: int) -> batch.Experience:
        """The samples in rows of so many tokens; 0: one in each."""
        room = max(self.case.limits)
        pairs: list[packing.Pair] = [(sample.prompt, sample.completion) for sample in self.taught]
        unpacked = packing.one_a_row(len(pairs), row_tokens=self.case.prompt_tokens + room, room=room)
        shards = mesh.num_row_shards(self.mesh)
        plan, _ = packing.planned(pairs, unpacked, row_tokens=row_tokens, num_shards=shards, micro_batches=1)
        return sharding.spread(packing.experience(self.taught, plan, truncated=False), self.mesh)

    def update(self, model: gemma.Model, known: batch.Experience) -> Program:
        """One step of the learner's."""
        step: Any = learner.make_step(model, self.transform, objective.LossConfig(), micro_batches=1, remat="none")
        fixed = (self.params, known, self.one)
        state = (self.adapter, self.transform.init(self.adapter))
        traced = step.trace(*state, *fixed)
        executable = traced.lower().compile()

        def call() -> Any:
            given = jax.tree.map(jnp.copy, state)  # the step donates what it is given
            return jax.block_until_ready(executable(*given, *fixed))

        return Program(traced, executable, call)

    def score(self, model: gemma.Model, known: batch.Experience) -> Program:
        """The log-probs of all completion tokens."""
        scorer: Any = learner.make_scorer(model, micro_batches=1)
        given = (self.adapter, self.params, known, self.one)
        traced = scorer.trace(*given)
        executable = traced.lower().compile()
        return Program(traced, executable, lambda: jax.block_until_ready(executable(*given)))

    def gradient(self, name: str, updated: Any) -> np.ndarray:
        """What an update of plain descent took off the adapter, as one row of numbers; ValueError if none was made."""
        after, _, metrics = updated
        if metrics["skipped"]:
            raise ValueError(f"gradient, {name}: something is not finite; nothing is timed")
        change = jax.tree.map(lambda old, new: np.asarray(old - new).ravel(), self.adapter, after)
        return np.concatenate(jax.tree.leaves(change))


def check(setting: Setting, updates: dict[str, Program]) -> dict[str, float]:
    """Gaps that must be small before anything is timed; ValueError if one is not."""
    updated = {name: program.call() for name, program in updates.items()}
    drawn = float(updated["ours"][2]["sampling/sampling_logp_difference/max"])
    drawn_by = {"engine vs learner log-prob, max": drawn}
    timing.require_small(drawn_by, ENGINE_GAP)
    right = setting.gradient(PLAIN, updated.pop(PLAIN))
    gaps = {
        f"gradient, {name}": float(np.abs(setting.gradient(name, found) - right).max() / np.abs(right).max())
        for name, found in updated.items()
    }
    timing.require_small(gaps, WAY_GAP)
    return {**drawn_by, **gaps}


def run(repeats: int, *, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Figures of the cases, or of those named; ValueError, with nothing timed, if a check fails."""
    known = ("update", "score", "token_logprob")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no case {unknown[0]!r}; there are {', '.join(known)}")
    chosen = names or known
    found = []
    if {"update", "score"} & set(chosen):
        setting = Setting()
        packed, unpacked = setting.rows(row_tokens=ROW_TOKENS), setting.rows(row_tokens=0)
        ways = {
            "ours": (setting.model, packed),
            "a row for each sample": (setting.model, unpacked),
            PLAIN: (setting.plain, packed),
        }
        updates = {name: setting.update(*given) for name, given in ways.items()}
        checks = check(setting, updates)
        if "update" in chosen:
            found.append(figure("update", setting, updates, repeats, checks))
        if "score" in chosen:
            scores = {name: setting.score(*given) for name, given in ways.items()}
            found.append(figure("score", setting, scores, repeats, checks))
    if "token_logprob" in chosen:
        found.append(logprob.run(repeats))
    return found


def figure(
    case: str, setting: Setting, programs: dict[str, Program], repeats: int, checks: dict[str, float]
) -> dict[str, Any]:
    """Median seconds and temporary bytes of every way, printed; `ratio` is how many times ours they take."""
    seconds = timing.alternate({name: program.call for name, program in programs.items()}, repeats)
    ours, devices = programs["ours"], setting.mesh.size
    temp = {name: program.executable.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    reached = functools.partial(roofline.of_program, ours.traced, ours.executable, devices=devices)
    found = {
        "case": case,
        "checks": checks,
        "seconds": seconds,
        "temp_bytes": temp,
        "ratio": {name: spent / seconds["ours"] for name, spent in seconds.items() if name != "ours"},
        "roofline": reached(window=setting.model.config.window, seconds=seconds["ours"]),
    }
    tokens = sum(len(sample.prompt) + len(sample.completion) for sample in setting.taught)
    print(f"{case}: {len(setting.taught)} samples, {tokens} tokens, {devices} device(s)")
    for name, gap in checks.items():
        print(f"  checked  {name}: {gap:.1e}")
    for line in lines(found):
        print(line, flush=True)
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """Seconds, bytes and ratios of a figure."""
    said = [
        f"  {seconds:8.3f} s  {found['temp_bytes'][name] / 2**20:10.1f} MiB  {name}"
        + (f"  ratio {found['ratio'][name]:.2f}" if name in found["ratio"] else "")
        for name, seconds in found["seconds"].items()
    ]
    reached = found["roofline"]
    return said if reached is None else [*said, f"  {reached:.0%} of what the device allows"]
