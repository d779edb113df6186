"""A recipe's stages, one after the other, in a workdir that remembers how far they got.

A finished stage is never repeated: its adapter is read back, its evaluation kept.  Base weights are read from where the
recipe has them and the adapters of finished stages merged in again, in order.
"""

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from thinkfirst.core import config as config_lib
from thinkfirst.core import files, mesh, runtime, sharding
from thinkfirst.models import weights
from thinkfirst.rl import evaluate, guard, loading, loop, optimizer, packing, policy, report, sft, stages, trainer
from thinkfirst.rl.data import source

Progress = dict[str, Any]  # {"stages": [...], "evaluations": [...]} as in final_results.json


def run(config: stages.RunConfig, workdir: pathlib.Path, budget: runtime.Budget) -> dict[str, Any]:
    """Runs or resumes the recipe; returns what final_results.json holds.  Raises loop.OutOfBudget when cut short."""
    problems = source.make(config.data, config.seed)
    subject = loading.from_config(config, workdir)
    for stage in config.stages:
        _check_rows(stage, mesh.num_row_shards(subject.mesh), config.max_prompt_tokens)
    claim(config, workdir)
    progress = _read_progress(workdir)
    first_step = num_tokens = 0
    for place, stage in enumerate(config.stages):
        finished = place < len(progress["stages"])
        root = _root(config, place)
        if isinstance(stage, stages.Pretrain | stages.Sft | stages.Grpo):
            if isinstance(stage, stages.Pretrain):
                taught = source.make(dataclasses.replace(config.data, kind=stage.data), config.seed)
            else:
                taught = problems
            step_fn, state = _training(subject, stage, taught, root)
            if finished:
                done = loop.restore(workdir, stage, state, stage.steps)
            else:
                done = loop.run(
                    workdir, stage, state, step_fn, first_step=first_step, num_tokens=num_tokens, budget=budget
                )
                _remember(workdir, progress, stage, stage.steps, done.seconds)
            _install(subject, stage, done.state)
            first_step, num_tokens = first_step + stage.steps, done.num_tokens
        elif isinstance(stage, stages.Merge):
            subject.merge()
            if not finished:
                _remember(workdir, progress, stage, 0, 0.0)
        elif not finished:
            _look(subject, stage, problems, progress, key=jax.random.key(config.seed), workdir=workdir)
    return _results(config, subject, progress, workdir)


def restore(config: stages.RunConfig, workdir: pathlib.Path, *, dtype: loading.Dtype = "") -> policy.Policy:
    """The policy as the run in `workdir` left it: after its last finished stage, or the last save of the one begun."""
    subject = loading.from_config(config, workdir, dtype=dtype)
    num_finished = len(_read_progress(workdir)["stages"])
    for place, stage in enumerate(config.stages[: num_finished + 1]):
        if isinstance(stage, stages.Merge) and place < num_finished:
            subject.merge()
        elif isinstance(stage, stages.Pretrain | stages.Sft | stages.Grpo):
            step = stage.steps if place < num_finished else loop.newest(workdir, stage)
            if step:
                state, _ = _initial(subject, stage, _root(config, place))
                _install(subject, stage, loop.restore(workdir, stage, state, step).state)
    return subject


def claim(config: stages.RunConfig, workdir: pathlib.Path) -> None:
    """Writes config.json, or checks that the run already there is this one."""
    path, dumped = workdir / "config.json", config_lib.dump(config)
    if path.is_file():
        changed = config_lib.differences(json.loads(path.read_text()), dumped)
        if changed:
            raise ValueError(f"{workdir} holds a run with other settings ({'; '.join(changed)}); use another --workdir")
    else:
        files.write_text(path, json.dumps(dumped, indent=2) + "\n")


def _root(config: stages.RunConfig, place: int) -> jax.Array:
    """The key of the stage at `place`."""
    return jax.random.fold_in(jax.random.key(config.seed), place)


def _check_rows(stage: stages.Stage, num_shards: int, max_prompt_tokens: int) -> None:
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


def _initial(subject: policy.Policy, stage: loop.TrainingStage, root: jax.Array) -> tuple[Any, Any]:
    """(state a training stage starts from, the optimiser's transform)."""
    transform = optimizer.make(stage.optimizer, stages.num_updates(stage))
    if isinstance(stage, stages.Pretrain):
        trained: Any = subject.params
    else:
        key = jax.random.fold_in(root, 0) if isinstance(stage, stages.Grpo) else root
        trained = subject.fresh_adapter(stage.lora, key)
    return (trained, trainer.init_optimizer(transform, trained, subject)), transform


def _training(
    subject: policy.Policy, stage: loop.TrainingStage, problems: source.Source, root: jax.Array
) -> tuple[loop.Step, Any]:
    """(step function, initial state) of a training stage."""
    initial, transform = _initial(subject, stage, root)
    if isinstance(stage, stages.Grpo):
        return trainer.make_grpo_step(subject, stage, problems, root, transform), initial
    rates = optimizer.rates(stage.optimizer, stage.steps)
    pretrains = isinstance(stage, stages.Pretrain)
    if not pretrains:
        update = sft.make_step(subject.model, transform, micro_batches=stage.micro_batches)
        advance = lambda state, rows: update(*state, subject.params, rows)  # noqa: E731
    else:
        update = sft.make_pretrain_step(subject.model, transform, micro_batches=stage.micro_batches)
        advance = lambda state, rows: update(*state, rows)  # noqa: E731

    def step_fn(state: Any, step: int) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
        pairs = _demonstrations(subject, stage, problems, step)
        plan, row = packing.planned(
            pairs,
            packing.one_a_row(len(pairs), row_tokens=stage.num_tokens, room=stage.num_tokens - 1),
            row_tokens=stage.row_tokens,
            num_shards=mesh.num_row_shards(subject.mesh),
            micro_batches=stage.micro_batches,
        )
        rows = packing.lay_out(pairs, plan)
        *state, learned = advance(state, jax.device_put(rows, sharding.rows(subject.mesh)))
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

    return step_fn, initial


def _demonstrations(
    subject: policy.Policy, stage: stages.Pretrain | stages.Sft, problems: source.Source, step: int
) -> list[packing.Pair]:
    """Prompts and completions of the step; one that does not fit `num_tokens` is left empty."""
    pairs: list[packing.Pair] = []
    for index in range((step - 1) * stage.batch_size, step * stage.batch_size):
        shown = problems.demonstration(index)
        prompt = subject.tokenizer.prompt(shown.problem.question, subject.instruction)
        completion = subject.tokenizer.completion(shown.completion)
        pairs.append((prompt, completion) if len(prompt) + len(completion) <= stage.num_tokens else ([], []))
    return pairs


def _install(subject: policy.Policy, stage: loop.TrainingStage, state: Any) -> None:
    """Makes what a stage trained the policy."""
    if isinstance(stage, stages.Pretrain):
        subject.params, subject.source = state[0], ""
    else:
        subject.adapter = state[0]


def _look(
    subject: policy.Policy,
    stage: stages.Evaluate | stages.Export,
    problems: source.Source,
    progress: Progress,
    *,
    key: jax.Array,
    workdir: pathlib.Path,
) -> None:
    """Stages that look at the policy without changing it."""
    start = time.perf_counter()
    if isinstance(stage, stages.Evaluate):
        held_out = problems.held_out()
        print(f"{stage.name}: evaluating on {len(held_out)} held-out problems", flush=True)
        progress["evaluations"].append(evaluate.evaluate(subject, held_out, stage, key))
    else:
        print(f"{stage.name}: writing {stage.folder}", flush=True)
        weights.save(stage.folder, subject.model, subject.params, words=subject.words, source=subject.source)
    _remember(workdir, progress, stage, 0, time.perf_counter() - start)


def _read_progress(workdir: pathlib.Path) -> Progress:
    path = workdir / "progress.json"
    return json.loads(path.read_text()) if path.is_file() else {"stages": [], "evaluations": []}


def _remember(workdir: pathlib.Path, progress: Progress, stage: stages.Stage, steps: int, seconds: float) -> None:
    progress["stages"].append({"name": stage.name, "kind": loop.kind(stage), "steps": steps, "seconds": seconds})
    files.write_text(workdir / "progress.json", json.dumps(progress, indent=1) + "\n")


def _results(
    config: stages.RunConfig, subject: policy.Policy, progress: Progress, workdir: pathlib.Path
) -> dict[str, Any]:
    """Writes final_results.json, the curves and the report."""
    shape = subject.model.config
    size = weights.num_parameters(subject.model.shapes()) / 1e6
    results = {
        "recipe": config.recipe,
        "seed": config.seed,
        "model": f"Gemma {shape.generation}, {size:.2f} M parameters, {shape.num_layers} layers",
        **progress,
        "versions": runtime.versions(),
        "notes": [note.format(slip_share=config.data.slip_share) for note in config.notes],
    }
    files.write_text(workdir / "final_results.json", json.dumps(results, indent=1) + "\n")
    report.write(workdir)
    return results
