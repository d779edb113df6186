"""The GRPO step, from problems to an updated adapter.  Read this file first.

problems -> prompts -> rollout -> completions -> rewards (these in rl/samples.py) -> advantages -> experience
    -> learner, `num_iterations` times -> adapter'
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from thinkfirst.core import mesh, metrics, sharding
from thinkfirst.models import remat as remat_lib
from thinkfirst.rl import (
    advantage,
    batch,
    curriculum,
    grading,
    guard,
    learner,
    loop,
    optimizer,
    packing,
    policy,
    samples,
    stages,
)
from thinkfirst.rl.data import source
from thinkfirst.rl.rewards import code, reward

LEARNER_BUCKET = 128  # sequences are trimmed to a multiple of this many tokens: few shapes, few compilations


def make_grpo_step(
    subject: policy.Policy,
    stage: stages.Grpo,
    problems: source.Source,
    root: jax.Array,
    transform: optax.GradientTransformation,
    *,
    remat: remat_lib.Name,
    judge: code.Judge | None = None,
    grade: samples.Grader | None = None,
    check: Callable[[str], None] = lambda where: None,
) -> loop.Step:
    """Step function of the stage; its state is the adapter and that of the optimiser `transform`.

    `remat` is what the stage's own comes to on this mesh (rl/remat_choice.py); `grade` is what the stage's settings
    name (rl/grading.py), where it is not given.  `check` is called wherever a step may still be left, and may raise; an
    update that was begun is made, in all its iterations.
    """
    for phase in stage.phases:
        for difficulty in phase.difficulties:
            problems.problem(0, difficulty)  # one that the data lack is told now, not when its phase begins
    sampling = batch.Sampling.of(
        temperature=stage.temperature,
        top_k=stage.top_k,
        top_p=stage.top_p,
        min_p=stage.min_p,
        max_new_tokens=stage.max_new_tokens,
    )
    grade = grade or grading.make(stage, judge)
    sampler = samples.Sampler(subject, stage, problems, sampling, root, grade, check)
    advance = _make_updates(subject, stage, transform, sampling, remat)
    rates = optimizer.rates(stage.optimizer, stages.num_updates(stage)).reshape(-1, stage.num_iterations)

    def step_fn(state: Any, step: int) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
        subject.adapter, opt_state = state
        clock = metrics.Clock()
        groups, keep, measured = sampler.gather(step, clock)
        advantage_PG = advantages([groups[place] for place in keep], stage)
        with clock.phase("update"):
            known, padding = experience(
                samples.taught([groups[place] for place in keep], advantage_PG, stage),
                stage,
                max_prompt_tokens=subject.max_prompt_tokens,
                num_shards=mesh.num_row_shards(subject.mesh),
                truncated=sampling.truncated,
            )
            subject.adapter, opt_state, learned, wrong = advance((subject.adapter, opt_state), known)
        reward_PG, known_PG = samples.rewards(groups)
        taught_PG = reward_PG[list(keep)]
        wrong = wrong if np.isfinite(taught_PG).all() else ("reward", *wrong)
        graded = [grade for group in groups for grade in group.graded]
        answered = [(group.problem, completion) for group in groups for completion in group.completions]
        row = {
            "phase": curriculum.phase_at(stage.phases, step).name,
            "learning_rate": float(rates[step - 1].mean()),
            **reward_metrics(graded, reward_PG, known_PG),
            **grading.weights(stage.rewards, step),
            **grading.by_domain(answered, graded),
            **length_metrics([completion for _, completion in answered], stage.max_new_tokens),
            **learned,
            **padding,
            **measured,
            **clock.seconds,
            "tokens_of_step": _tokens(groups),
            "fault": guard.fault(
                wrong,
                known,
                problems=[groups[place].problem.id for place in keep],
                rewards={"reward_PG": taught_PG, "known_PG": known_PG[list(keep)]},
                trees={"params": subject.params, "adapter": subject.adapter, "optimizer": opt_state},
            ),
        }
        placed_PG = np.zeros(reward_PG.shape, np.float32)
        placed_PG[list(keep)] = advantage_PG
        return (subject.adapter, opt_state), row, completion_rows(groups, placed_PG)

    return step_fn


def advantages(groups: Sequence[samples.Group], stage: stages.Grpo) -> np.ndarray:
    """The advantages [P, G] of groups; all NaN, which the update refuses, if a reward is not finite."""
    if not groups:
        return np.zeros((0, stage.group), np.float32)
    reward_PG, known_PG = samples.rewards(groups)
    if not np.isfinite(reward_PG).all():
        return np.full(reward_PG.shape, np.nan, np.float32)
    return advantage.ESTIMATORS[stage.advantage](reward_PG, known_PG)


def experience(
    taught: Sequence[batch.Sample], stage: stages.Grpo, *, max_prompt_tokens: int, num_shards: int, truncated: bool
) -> tuple[batch.Experience, dict[str, float]]:
    """(the batch as the learner takes it, on the host, metrics of its padding); a sample that is missing is padding."""
    pairs: list[packing.Pair] = [(sample.prompt, sample.completion) for sample in taught]
    longest = max((len(prompt) + len(completion) for prompt, completion in pairs), default=1)
    unpacked = packing.one_a_row(
        len(pairs),
        num_rows=stage.prompts * stage.group,
        row_tokens=min(-(-longest // LEARNER_BUCKET) * LEARNER_BUCKET, max_prompt_tokens + stage.max_new_tokens),
        room=stage.max_new_tokens,
    )
    plan, padding = packing.planned(
        pairs, unpacked, row_tokens=stage.row_tokens, num_shards=num_shards, micro_batches=stage.micro_batches
    )
    return packing.experience(taught, plan, truncated=truncated), padding


def _make_updates(
    subject: policy.Policy,
    stage: stages.Grpo,
    transform: optax.GradientTransformation,
    sampling: batch.Sampling,
    remat: remat_lib.Name,
) -> Callable[..., Any]:
    """advance(state, experience) -> adapter', optimiser state', metrics, names of what was not finite.

    The old log-probs are the same in all iterations: those of the sampler, or with a correction for it those of the
    learner's own policy before the first.  With one iteration that is the policy being updated, and nothing is scored.
    """
    update = learner.make_step(
        subject.model,
        transform,
        stage.loss.within(stage.max_new_tokens),
        micro_batches=stage.micro_batches,
        remat=remat,
    )
    score = learner.make_scorer(subject.model, micro_batches=stage.micro_batches)
    temperature = sharding.everywhere(sampling.temperature, subject.mesh)

    def advance(state: Any, known: batch.Experience) -> Any:
        known = sharding.spread(known, subject.mesh)
        if stage.loss.correction != "none" and stage.num_iterations > 1:
            logp_BT = score(state[0], subject.params, known, temperature)
            known = dataclasses.replace(known, old_logp_BT=logp_BT, sampler_logp_BT=known.old_logp_BT)
        found = []
        for _ in range(stage.num_iterations):
            *state, learned = update(*state, subject.params, known, temperature)
            found.append(learned)
        return *state, *guard.split(over_iterations(jax.device_get(found)))

    return advance


def over_iterations(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of a step from those of its updates: smallest, largest and finite by their names, all else averaged."""
    rules: dict[str, Callable[..., Any]] = {"min": np.min, "max": np.max}
    together = {}
    for name in found[0]:
        kind = name.replace("/", "_").rsplit("_", 1)[-1]
        rule = np.all if name.startswith(guard.FINITE) else rules.get(kind, np.mean)
        together[name] = rule([row[name] for row in found])
    return together


def init_optimizer(transform: Any, trained: Any, subject: policy.Policy) -> Any:
    """Optimiser state laid out as what it follows; counters on every device."""
    layout = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(trained)}
    everywhere = sharding.replicated(subject.mesh)
    shapes = jax.eval_shape(transform.init, trained)
    shardings = jax.tree.map(lambda x: layout.get(x.shape, everywhere), shapes)
    return jax.jit(transform.init, out_shardings=shardings)(trained)


def reward_metrics(graded: Sequence[reward.Graded], reward_PG: np.ndarray, known_PG: np.ndarray) -> dict[str, float]:
    """Known rewards of the step under TRL's names; parts are raw scores, before their weights, where they apply."""
    found = {
        **_mean_and_deviation("reward", "reward_std", reward_PG[known_PG]),
        "frac_reward_zero_std": float(advantage.has_no_signal(reward_PG, known_PG).mean()),
        "frac_reward_unknown": float(1 - known_PG.mean()),
    }
    for name in dict.fromkeys(name for grade in graded for name in grade.parts):
        values = [value for grade in graded if (value := grade.parts.get(name)) is not None]
        found |= _mean_and_deviation(f"rewards/{name}/mean", f"rewards/{name}/std", np.array(values))
    return found


def _mean_and_deviation(mean: str, deviation: str, values: np.ndarray) -> dict[str, float]:
    """NaN where there are too few values."""
    with np.errstate(invalid="ignore"):  # an infinite reward has no deviation
        return {
            mean: float(values.mean()) if values.size else float("nan"),
            deviation: float(values.std(ddof=1)) if values.size > 1 else float("nan"),
        }


def length_metrics(completions: Sequence[batch.Completion], room: int) -> dict[str, float]:
    """Lengths in tokens, the stop token included, under TRL's names; `padding_waste` is the share of unused room."""
    lengths = np.array([_length(completion) for completion in completions])
    ended = lengths[[completion.stopped for completion in completions]]
    ended_or_nan = ended if len(ended) else np.array([np.nan])
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/mean_terminated_length": float(ended_or_nan.mean()),
        "completions/min_terminated_length": float(ended_or_nan.min()),
        "completions/max_terminated_length": float(ended_or_nan.max()),
        "completions/clipped_ratio": 1.0 - len(ended) / len(lengths),
        "padding_waste": 1.0 - float(lengths.mean()) / room,
    }


def completion_rows(groups: Sequence[samples.Group], advantage_PG: np.ndarray) -> list[dict[str, Any]]:
    """Rows of completions.jsonl."""
    return [
        {
            "problem_id": group.problem.id,
            "question": group.problem.question,
            "answer": group.problem.answer,
            "domain": group.problem.domain,
            "difficulty": group.problem.difficulty,
            "completion": completion.text,
            "reward": grade.total,
            "advantage": float(advantage_value),
            "parts": grade.parts,
        }
        for group, advantage_G in zip(groups, advantage_PG, strict=True)
        for completion, grade, advantage_value in zip(group.completions, group.graded, advantage_G, strict=True)
    ]


def _tokens(groups: Sequence[samples.Group]) -> int:
    """Tokens of prompts, for every sample, and of completions."""
    return sum(len(group.prompt) * len(group.completions) + sum(map(_length, group.completions)) for group in groups)


def _length(completion: batch.Completion) -> int:
    return len(completion.spans) + completion.stopped
