"""A recipe's stages, one after the other, in a workdir that remembers how far they got.

A finished stage is never repeated: its adapter is read back, its evaluation kept.  Base weights are read from where the
recipe has them, and its adapters and those of finished stages merged in again, in order.
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
from thinkfirst.models import config as model_config
from thinkfirst.models import gemma, peft, weights
from thinkfirst.models import tokenizer as tokenizer_lib
from thinkfirst.rl import evaluate, loop, optimizer, policy, report, sft, stages, trainer
from thinkfirst.rl.data import source

Progress = dict[str, Any]  # {"stages": [...], "evaluations": [...]} as in final_results.json


def run(config: stages.RunConfig, workdir: pathlib.Path, budget: runtime.Budget) -> dict[str, Any]:
    """Runs or resumes the recipe; returns what final_results.json holds.  Raises loop.OutOfBudget when cut short."""
    problems = source.make(config.data, config.seed)
    subject = load_policy(config, workdir)
    claim(config, workdir)
    progress = _read_progress(workdir)
    first_step = num_tokens = 0
    for place, stage in enumerate(config.stages):
        finished = place < len(progress["stages"])
        root = jax.random.fold_in(jax.random.key(config.seed), place)
        if isinstance(stage, stages.Pretrain | stages.Sft | stages.Grpo):
            if isinstance(stage, stages.Pretrain):
                taught = source.make(dataclasses.replace(config.data, kind=stage.data), config.seed)
            else:
                taught = problems
            step_fn, state = _training(subject, stage, taught, root)
            if finished:
                done = loop.restore(workdir, stage, state)
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


def load_policy(config: stages.RunConfig, workdir: pathlib.Path) -> policy.Policy:
    """Tokenizer, then model, checked against each other before any weight is read."""
    if config.checkpoint:
        shape = model_config.read(config.checkpoint)
    else:
        shape = _architecture(config.architecture)
    words = _tokenizer(config, workdir, shape)
    tokenizer_lib.check_vocab(words, shape.vocab_size)
    model, devices = gemma.Model(shape), mesh.make(config.mesh)
    host = weights.load(config.checkpoint, model) if config.checkpoint else model.init(config.seed)
    params = jax.device_put(host, sharding.parameters(model.letters(), model.shapes(), devices))
    subject = policy.Policy(
        model, words, devices, params, instruction=config.instruction, max_prompt_tokens=config.max_prompt_tokens
    )
    _merge_adapters(subject, config)
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


def _merge_adapters(subject: policy.Policy, config: stages.RunConfig) -> None:
    """Makes the recipe's adapters part of the base, in order."""
    if config.adapters and not config.checkpoint:
        raise ValueError(f"adapters={','.join(config.adapters)} are of a base: set checkpoint=FOLDER too")
    for folder in config.adapters:
        subject.adapter = subject.laid_out(peft.load(folder, subject.model))
        subject.merge()


def _architecture(name: str) -> model_config.GemmaConfig:
    if name not in model_config.BY_NAME:
        known = ", ".join(model_config.BY_NAME)
        raise ValueError(f"architecture={name!r}: there is {known} (or set checkpoint=FOLDER)")
    return model_config.BY_NAME[name]()


def _tokenizer(
    config: stages.RunConfig, workdir: pathlib.Path, shape: model_config.GemmaConfig
) -> tokenizer_lib.Tokenizer:
    """The configured tokenizer, the checkpoint's, or, for a run that pre-trains, one made from its corpus."""
    if config.tokenizer or config.checkpoint:
        return tokenizer_lib.Tokenizer(config.tokenizer or config.checkpoint)
    if not isinstance(config.stages[0], stages.Pretrain):
        raise ValueError("tokenizer is not set: --set tokenizer=FILE (a SentencePiece .model)")
    path = workdir / tokenizer_lib.FILE_NAME
    if not path.is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        tokenizer_lib.train(source.corpus(config.seed), path, vocab_size=shape.vocab_size)
    return tokenizer_lib.Tokenizer(path)


def _training(
    subject: policy.Policy, stage: loop.TrainingStage, problems: source.Source, root: jax.Array
) -> tuple[loop.Step, Any]:
    """(step function, initial state) of a training stage."""
    if isinstance(stage, stages.Grpo):
        return trainer.make_grpo_step(subject, stage, problems, root)
    transform = optimizer.make(stage.optimizer, stage.steps)
    rates = optimizer.rates(stage.optimizer, stage.steps)
    if isinstance(stage, stages.Sft):
        update = sft.make_step(subject.model, transform)
        trained: Any = subject.fresh_adapter(stage.lora, root)
        advance = lambda state, rows: update(*state, subject.params, rows)  # noqa: E731
    else:
        update, trained = sft.make_pretrain_step(subject.model, transform), subject.params
        advance = lambda state, rows: update(*state, rows)  # noqa: E731

    def step_fn(state: Any, step: int) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
        rows = _demonstrations(subject, stage, problems, step)
        *state, learned = advance(state, jax.device_put(rows, sharding.rows(subject.mesh)))
        row = {name: float(value) for name, value in jax.device_get(learned).items()}
        dropped = float((np.asarray(rows.length_B) == 0).mean())
        tokens = int(np.asarray(rows.length_B).sum())
        row |= {"learning_rate": float(rates[step - 1]), "dropped_rows": dropped, "tokens_of_step": tokens}
        return tuple(state), row, []

    return step_fn, (trained, trainer.init_optimizer(transform, trained, subject))


def _demonstrations(
    subject: policy.Policy, stage: stages.Pretrain | stages.Sft, problems: source.Source, step: int
) -> Any:
    """The step's rows; one that does not fit `num_tokens` is left empty."""
    rows = []
    for index in range((step - 1) * stage.batch_size, step * stage.batch_size):
        shown = problems.demonstration(index)
        prompt = subject.tokenizer.prompt(shown.problem.question, subject.instruction)
        completion = subject.tokenizer.completion(shown.completion)
        rows.append((prompt, completion) if len(prompt) + len(completion) <= stage.num_tokens else ([], []))
    return sft.collate(rows, stage.num_tokens)


def _install(subject: policy.Policy, stage: loop.TrainingStage, state: Any) -> None:
    """Makes what a stage trained the policy."""
    if isinstance(stage, stages.Pretrain):
        subject.params = state[0]
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
        weights.save(stage.folder, subject.model, subject.params, words=subject.tokenizer)
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
