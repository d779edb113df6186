"""The GRPO step, from problems to an updated adapter.  Read this file first.

problems -> prompts -> rollout -> completions -> rewards -> advantages -> experience -> learner -> adapter'
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from thinkfirst.core import metrics, sharding
from thinkfirst.rl import advantage, batch, curriculum, grading, learner, loop, optimizer, policy, stages
from thinkfirst.rl.data import source
from thinkfirst.rl.rewards import reward

LEARNER_BUCKET = 128  # sequences are trimmed to a multiple of this many tokens: few shapes, few compilations


def make_grpo_step(
    subject: policy.Policy,
    stage: stages.Grpo,
    problems: source.Source,
    root: jax.Array,
    transform: optax.GradientTransformation,
) -> loop.Step:
    """Step function of the stage; its state is the adapter and that of the optimiser `transform`."""
    for phase in stage.phases:
        for difficulty in phase.difficulties:
            problems.problem(0, difficulty)  # one that the data lack is told now, not when its phase begins
    update = learner.make_step(
        subject.model, transform, stage.loss, micro_batches=stage.micro_batches, remat=stage.remat
    )
    rates = optimizer.rates(stage.optimizer, stage.steps)
    sampling = batch.Sampling.of(
        temperature=stage.temperature,
        top_k=stage.top_k,
        top_p=stage.top_p,
        min_p=stage.min_p,
        max_new_tokens=stage.max_new_tokens,
    )
    temperature = jax.device_put(sampling.temperature, sharding.replicated(subject.mesh))
    grade = grading.make(stage)

    def step_fn(state: Any, step: int) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
        subject.adapter, opt_state = state
        clock = metrics.Clock()
        phase = curriculum.phase_at(stage.phases, step)
        asked = draw(problems, stage, phase, step)
        prompts = subject.prompts(asked)
        with clock.phase("rollout"):
            key = jax.random.fold_in(root, jax.device_put(np.uint32(step)))
            engine = subject.engine(stage.max_new_tokens)
            rollout = engine.sample(subject.params, subject.adapter, prompts, sampling, key, group=stage.group)
            engine.release()  # the update needs the memory
            completions = subject.completions(rollout)
        with clock.phase("reward"):
            rows = [(asked[row // stage.group], completion) for row, completion in enumerate(completions)]
            graded = grade(rows, step=step, phase=phase.name)
            reward_PG, known_PG = grading.totals(graded, stage.group)
            advantage_PG = advantage.ESTIMATORS[stage.advantage](reward_PG, known_PG)
        with clock.phase("update"):
            experience = trimmed(batch.experience(prompts, rollout, advantage_PG.reshape(-1)))
            experience = jax.device_put(experience, sharding.rows(subject.mesh))
            subject.adapter, opt_state, learned = update(
                subject.adapter, opt_state, subject.params, experience, temperature
            )
            learned = {name: float(value) for name, value in jax.device_get(learned).items()}
        row = {
            "phase": phase.name,
            "learning_rate": float(rates[step - 1]),
            **reward_metrics(graded, reward_PG, known_PG),
            **grading.weights(stage.rewards, step),
            **grading.by_domain(rows, graded),
            **length_metrics(completions, stage.max_new_tokens),
            **learned,
            **engine.metrics,
            **clock.seconds,
            "tokens_of_step": int(prompts.length_P.sum()) * stage.group + sum(_length(c) for c in completions),
        }
        return (subject.adapter, opt_state), row, completion_rows(rows, graded, advantage_PG)

    return step_fn


def init_optimizer(transform: Any, trained: Any, subject: policy.Policy) -> Any:
    """Optimiser state laid out as what it follows; counters on every device."""
    layout = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(trained)}
    everywhere = sharding.replicated(subject.mesh)
    shapes = jax.eval_shape(transform.init, trained)
    shardings = jax.tree.map(lambda x: layout.get(x.shape, everywhere), shapes)
    return jax.jit(transform.init, out_shardings=shardings)(trained)


def draw(problems: source.Source, stage: stages.Grpo, phase: curriculum.Phase, step: int) -> list[batch.Problem]:
    """The step's problems: the next ones in line, of the phase's difficulties in turn."""
    asked = []
    for index in range((step - 1) * stage.prompts, step * stage.prompts):
        turn = curriculum.turn(stage.phases, stage.prompts, index) if problems.counts_by_difficulty else index
        asked.append(problems.problem(turn, curriculum.difficulty_at(phase, index)))
    return asked


def trimmed(rows: batch.Experience) -> batch.Experience:
    """Columns no row reaches are cut off, up to whole buckets."""
    longest = int((rows.prompt_length_B + rows.completion_length_B).max())
    width = -(-longest // LEARNER_BUCKET) * LEARNER_BUCKET
    return dataclasses.replace(rows, tokens_BT=rows.tokens_BT[:, :width])


def reward_metrics(
    graded: Sequence[reward.Graded], reward_PG: np.ndarray, known_PG: np.ndarray
) -> dict[str, float]:
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


def completion_rows(
    rows: Sequence[tuple[batch.Problem, batch.Completion]],
    graded: Sequence[reward.Graded],
    advantage_PG: np.ndarray,
) -> list[dict[str, Any]]:
    """Rows of completions.jsonl."""
    return [
        {
            "problem_id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            "domain": problem.domain,
            "difficulty": problem.difficulty,
            "completion": completion.text,
            "reward": grade.total,
            "advantage": float(advantage_value),
            "parts": grade.parts,
        }
        for (problem, completion), grade, advantage_value in zip(rows, graded, advantage_PG.reshape(-1), strict=True)
    ]


def _length(completion: batch.Completion) -> int:
    return len(completion.spans) + completion.stopped
