"""A stage that trains: the state it starts from, its step, what it learns from, and what becomes of the policy."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from thinkfirst.core import hosts, mesh, profiling, sharding
from thinkfirst.rl import (
    guard,
    loop,
    optimizer,
    packing,
    plan_programs,
    policy,
    reject,
    remat_choice,
    sft,
    stages,
    trainer,
)
from thinkfirst.rl.data import blend, mix, replay, source
from thinkfirst.rl.rewards import code


def lessons(config: stages.RunConfig) -> dict[str, source.Source]:
    """By stage, what is imitated where that is not the run's own data."""
    found = {}
    for stage in config.stages:
        if isinstance(stage, stages.Pretrain):
            found[stage.name] = source.make(dataclasses.replace(config.data, kind=stage.data), config.seed)
        elif isinstance(stage, stages.Distill):
            data = dataclasses.replace(stage.data, folder=stage.data.folder or config.data.folder)
            found[stage.name] = source.make(data, config.seed)
    return found


def shown(stage: loop.TrainingStage, given: source.Source, workdir: pathlib.Path, seed: int) -> blend.Demonstrations:
    """What the stage learns from: what it is given, with the traces it replays among them."""
    if not (isinstance(stage, stages.Distill) and stage.replay):
        return given
    path = reject.traces(workdir, stage.replay)
    kept = replay.parse(hosts.told(path.read_text), str(path))
    if not kept:
        raise ValueError(
            f"{path}: {stage.replay} kept no trace for {stage.name} to replay; lower stages.{stage.replay}.least, or "
            "teach the format first"
        )
    return blend.Blend(given, mix.endless(kept, seed), stage.replay_share)


def check_rows(stage: stages.Stage, num_shards: int, max_prompt_tokens: int) -> None:
    """Raises unless rows can hold the samples of a stage that trains, and be spread over the mesh."""
    if isinstance(stage, stages.Grpo):
        rows, longest = stage.prompts * stage.group, max_prompt_tokens + stage.max_new_tokens
    elif isinstance(stage, stages.Pretrain | stages.Sft):
        rows, longest = stage.batch_size, stage.num_tokens
    else:
        return
    parts = stage.micro_batches * num_shards
    if rows % parts:
        raise ValueError(f"{stage.name}: a batch of {rows} rows cannot be cut into {parts} equal parts")
    if 0 < stage.row_tokens < longest:
        raise ValueError(
            f"{stage.name}: row_tokens={stage.row_tokens} must hold a sample of {longest} tokens; 0 packs nothing"
        )


def initial(subject: policy.Policy, stage: loop.TrainingStage, root: jax.Array) -> tuple[Any, Any]:
    """(state a training stage starts from, the optimiser's transform)."""
    transform = optimizer.make(stage.optimizer, stages.num_updates(stage))
    if isinstance(stage, stages.Pretrain):
        trained: Any = subject.params
    else:
        key = jax.random.fold_in(root, 0) if isinstance(stage, stages.Grpo) else root
        trained = subject.fresh_adapter(stage.lora, key)
    return (trained, trainer.init_optimizer(transform, trained, subject)), transform


def make_step(
    subject: policy.Policy,
    stage: loop.TrainingStage,
    problems: blend.Demonstrations,
    root: jax.Array,
    *,
    judge: code.Judge | None,
    check: Callable[[str], None],
) -> tuple[loop.Step, Any]:
    """(step function, initial state) of a training stage."""
    start, transform = initial(subject, stage, root)
    if not isinstance(stage, stages.Pretrain):
        trained = plan_programs.Trained.at_work(subject, transform, start)
        remat = remat_choice.settled(stage, trained, prompt=subject.max_prompt_tokens)
    if isinstance(stage, stages.Grpo):
        assert isinstance(problems, source.Source)
        settings: dict[str, Any] = {"remat": remat, "judge": judge, "check": check}
        return trainer.make_grpo_step(subject, stage, problems, root, transform, **settings), start
    rates = optimizer.rates(stage.optimizer, stage.steps)
    pretrains = isinstance(stage, stages.Pretrain)
    if not pretrains:
        update = sft.make_step(subject.model, transform, micro_batches=stage.micro_batches, remat=remat)
        advance = lambda state, rows: update(*state, subject.params, rows)  # noqa: E731
    else:
        update = sft.make_pretrain_step(subject.model, transform, micro_batches=stage.micro_batches)
        advance = lambda state, rows: update(*state, rows)  # noqa: E731

    def step_fn(state: Any, step: int) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
        with profiling.phase("data"):
            pairs = _demonstrations(subject, stage, problems, step)
            plan, row = packing.planned(
                pairs,
                packing.one_a_row(len(pairs), row_tokens=stage.num_tokens, room=stage.num_tokens - 1),
                row_tokens=stage.row_tokens,
                num_shards=mesh.num_row_shards(subject.mesh),
                micro_batches=stage.micro_batches,
            )
            rows = packing.lay_out(pairs, plan)
        check(f"{stage.name}: update of step {step}")
        with profiling.phase("update"):
            *state, learned = advance(state, sharding.spread(rows, subject.mesh))
            scalars, wrong = guard.split(jax.device_get(learned))
        lengths = np.array([len(prompt) + len(completion) for prompt, completion in pairs])
        row |= {
            **scalars,
            "learning_rate": float(rates[step - 1]),
            "dropped_rows": float((lengths == 0).mean()),
            "tokens_of_step": int(lengths.sum()),
        }
        trained = {"params": state[0]} if pretrains else {"params": subject.params, "adapter": state[0]}
        found = guard.fault(wrong, rows, trees={**trained, "optimizer": state[1]})
        return tuple(state), {**row, "fault": found}, []

    return step_fn, start


def install(subject: policy.Policy, stage: loop.TrainingStage, state: Any) -> None:
    """Makes what a stage trained the policy."""
    if isinstance(stage, stages.Pretrain):
        subject.params, subject.source = state[0], ""
    else:
        subject.adapter = state[0]


def _demonstrations(
    subject: policy.Policy, stage: stages.Pretrain | stages.Sft, problems: blend.Demonstrations, step: int
) -> list[packing.Pair]:
    """Prompts and completions of the step; one that does not fit `num_tokens` is left empty."""
    pairs: list[packing.Pair] = []
    for index in range((step - 1) * stage.batch_size, step * stage.batch_size):
        shown = problems.demonstration(index)
        prompt = subject.tokenizer.prompt(shown.problem.question, subject.instruction)
        completion = subject.tokenizer.completion(shown.completion)
        pairs.append((prompt, completion) if len(prompt) + len(completion) <= stage.num_tokens else ([], []))
    return pairs
