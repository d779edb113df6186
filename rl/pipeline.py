"""A recipe's stages, one after the other, in a workdir that remembers how far they got.

A finished stage is never repeated: its adapter is read back, its evaluation kept.  Base weights are read from where the
recipe has them and the adapters of finished stages merged in again, in order.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from thinkfirst.core import config as config_lib
from thinkfirst.core import files, hosts, mesh, mirror, owner, profiling, runtime, sharding
from thinkfirst.models import weights
from thinkfirst.rl import (
    evaluate,
    gate,
    grading,
    guard,
    identity,
    loading,
    loop,
    optimizer,
    packing,
    plan_programs,
    policy,
    reject,
    remat_choice,
    report,
    sft,
    stages,
    trainer,
)
from thinkfirst.rl import standing as standing_lib
from thinkfirst.rl.data import blend, mix, replay, source
from thinkfirst.rl.rewards import code


def run(
    config: stages.RunConfig,
    workdir: pathlib.Path,
    budget: runtime.Budget,
    *,
    problems: source.Source | None = None,
    judge: code.Judge | None = None,
    copy: mirror.Mirror | None = None,
    profiled: profiling.Window = profiling.NOTHING,
) -> dict[str, Any]:
    """Runs or resumes the recipe; returns what final_results.json holds.  Raises loop.OutOfBudget when cut short.

    Every host of a run calls it; the first one owns the workdir and writes.  `problems` are those of `config.data`
    where the caller has read them already; `judge` runs the programs among the answers, and has to be given where there
    are any.  `copy` keeps what the workdir holds at a URL; `profiled` sees every step of a stage that trains.
    """
    hosts.check_same({"settings": config_lib.digest(config), "versions": runtime.versions()})
    with contextlib.ExitStack() as held:
        hosts.told(lambda: held.enter_context(owner.of(workdir)))
        if copy is not None:
            hosts.told(copy.fetch)
        sent = copy.push if copy is not None else lambda: None
        try:
            problems = problems or source.make(config.data, config.seed)
            return _run(config, workdir, budget, problems, judge, sent=sent, profiled=profiled)
        except runtime.Stopped as stopped:
            raise loop.OutOfBudget from stopped
        except guard.TooManyBadSteps:
            hosts.told(sent)  # their batches
            raise


def _run(
    config: stages.RunConfig,
    workdir: pathlib.Path,
    budget: runtime.Budget,
    problems: source.Source,
    judge: code.Judge | None,
    *,
    sent: Callable[[], None],
    profiled: profiling.Window,
) -> dict[str, Any]:
    """`sent` copies what the workdir holds by now."""
    budget.beat("loading")
    if problems.runs_code and judge is None:
        raise ValueError("some of these problems are answered by programs, and nobody is there to run them")
    given = lessons(config)
    subject = loading.from_config(config, workdir)
    for stage in config.stages:
        _check_rows(stage, mesh.num_row_shards(subject.mesh), config.max_prompt_tokens)
    made_of = identity.of(subject, problems)
    made_of |= {f"data of {name}": found.fingerprint() for name, found in given.items()}
    hosts.check_same(made_of)
    hosts.told(lambda: claim(config, workdir))
    hosts.told(sent)
    progress = hosts.told(lambda: _read_progress(workdir))
    standing = standing_lib.Standing()
    first_step = num_tokens = 0
    for place, stage in enumerate(config.stages):
        finished = place < len(progress["stages"])
        root = _root(config, place)
        if isinstance(stage, stages.Pretrain | stages.Sft | stages.Grpo):
            budget.check(f"{stage.name}: beginning")
            standing.begins(subject)
            if finished:
                state, _ = _initial(subject, stage, root)
                done = loop.restore(workdir, stage, state, stage.steps, made_of=made_of)
            else:
                shown = _shown(stage, given.get(stage.name, problems), workdir, config.seed)
                step_fn, state = _training(subject, stage, shown, root, judge=judge, check=budget.check)
                done = loop.run(
                    workdir,
                    stage,
                    state,
                    step_fn,
                    first_step=first_step,
                    num_tokens=num_tokens,
                    budget=budget,
                    keep=config.keep,
                    written=sent,
                    made_of=made_of,
                    profiled=profiled,
                )
                _remember(workdir, progress, stage, done.seconds, sent=sent)
            _install(subject, stage, done.state)
            first_step, num_tokens = first_step + stage.steps, done.num_tokens
            continue
        budget.check(stage.name)
        if not finished:
            start = time.perf_counter()
            if isinstance(stage, stages.Reject):
                found = _reject(subject, stage, problems, root, workdir, judge=judge, check=budget.check)
                progress["traces"][stage.name] = found
            elif isinstance(stage, stages.Gate):
                progress["gates"].append(hosts.told(lambda stage=stage: standing.judged(stage)))  # type: ignore[misc]
                hosts.say("\n".join(gate.lines(stage.name, progress["gates"][-1])))
            elif not isinstance(stage, stages.Merge):
                key = jax.random.key(config.seed)
                _look(subject, stage, problems, progress, key=key, judge=judge, check=budget.check)
            _remember(workdir, progress, stage, time.perf_counter() - start, sent=sent)
        standing.passed(subject, stage, progress)
    results = _results(config, subject, progress, workdir)
    hosts.told(sent)
    return results


def restore(config: stages.RunConfig, workdir: pathlib.Path, *, dtype: loading.Dtype = "") -> policy.Policy:
    """The policy as the run in `workdir` left it: after its last finished stage, or the last save of the one begun."""
    subject = loading.from_config(config, workdir, dtype=dtype)
    made_of = {} if dtype else identity.of(subject)  # another type has other bits
    progress = _read_progress(workdir)
    standing = standing_lib.Standing()
    num_finished = len(progress["stages"])
    for place, stage in enumerate(config.stages[: num_finished + 1]):
        if isinstance(stage, stages.Pretrain | stages.Sft | stages.Grpo):
            standing.begins(subject)
            step = stage.steps if place < num_finished else loop.newest(workdir, stage)
            if step:
                state, _ = _initial(subject, stage, _root(config, place))
                _install(subject, stage, loop.restore(workdir, stage, state, step, made_of=made_of).state)
        elif place < num_finished:
            standing.passed(subject, stage, progress)
    return subject


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


def _shown(stage: loop.TrainingStage, given: source.Source, workdir: pathlib.Path, seed: int) -> blend.Demonstrations:
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


def claim(config: stages.RunConfig, workdir: pathlib.Path) -> None:
    """Writes config.json, or checks that the run already there is this one."""
    path, dumped = workdir / "config.json", config_lib.dump(config)
    if path.is_file():
        changed = config_lib.differences(json.loads(path.read_text()), dumped)
        identity.allowed(changed, str(workdir))
        if not changed:
            return
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
    subject: policy.Policy,
    stage: loop.TrainingStage,
    problems: blend.Demonstrations,
    root: jax.Array,
    *,
    judge: code.Judge | None,
    check: Callable[[str], None],
) -> tuple[loop.Step, Any]:
    """(step function, initial state) of a training stage."""
    initial, transform = _initial(subject, stage, root)
    if not isinstance(stage, stages.Pretrain):
        trained = plan_programs.Trained.at_work(subject, transform, initial)
        remat = remat_choice.settled(stage, trained, prompt=subject.max_prompt_tokens)
    if isinstance(stage, stages.Grpo):
        assert isinstance(problems, source.Source)
        settings: dict[str, Any] = {"remat": remat, "judge": judge, "check": check}
        return trainer.make_grpo_step(subject, stage, problems, root, transform, **settings), initial
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

    return step_fn, initial


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
    progress: standing_lib.Progress,
    *,
    key: jax.Array,
    judge: code.Judge | None,
    check: Callable[[str], None],
) -> None:
    """Stages that look at the policy without changing it."""
    if isinstance(stage, stages.Evaluate):
        held_out = problems.held_out()
        hosts.say(f"{stage.name}: evaluating on {len(held_out)} held-out problems")
        progress["evaluations"].append(evaluate.evaluate(subject, held_out, stage, key, judge, check=check))
    else:
        hosts.say(f"{stage.name}: writing {stage.folder}")
        weights.save(stage.folder, *subject.stored(), words=subject.words, source=subject.source)


def _reject(
    subject: policy.Policy,
    stage: stages.Reject,
    problems: source.Source,
    root: jax.Array,
    workdir: pathlib.Path,
    *,
    judge: code.Judge | None,
    check: Callable[[str], None],
) -> dict[str, Any]:
    """The stage's traces, written; returns how many there are."""
    grade = grading.make(stage, judge)
    try:
        kept = reject.run(subject, stage, problems, root, grade=grade, workdir=workdir, check=check)
    finally:
        grade.close()
    hosts.say(f"{stage.name}: kept {kept['kept']} of {kept['samples']} samples {kept['by_domain']}")
    return kept


def _read_progress(workdir: pathlib.Path) -> standing_lib.Progress:
    path = workdir / "progress.json"
    empty: standing_lib.Progress = {"stages": [], "evaluations": [], "gates": [], "traces": {}}
    return empty | json.loads(path.read_text()) if path.is_file() else empty


def _remember(
    workdir: pathlib.Path,
    progress: standing_lib.Progress,
    stage: stages.Stage,
    seconds: float,
    *,
    sent: Callable[[], None],
) -> None:
    steps = stage.steps if isinstance(stage, stages.Pretrain | stages.Sft | stages.Grpo) else 0
    progress["stages"].append({"name": stage.name, "kind": loop.kind(stage), "steps": steps, "seconds": seconds})
    if hosts.is_first():
        files.write_text(workdir / "progress.json", json.dumps(progress, indent=1) + "\n")
    hosts.told(sent)


def _results(
    config: stages.RunConfig, subject: policy.Policy, progress: standing_lib.Progress, workdir: pathlib.Path
) -> dict[str, Any]:
    """Writes final_results.json, the curves and the report."""
    shape = subject.model.config
    size = weights.num_parameters(subject.model.stored.shapes()) / 1e6
    results = {
        "recipe": config.recipe,
        "seed": config.seed,
        "model": f"Gemma {shape.generation}, {size:.2f} M parameters, {shape.num_layers} layers",
        **progress,
        "versions": runtime.versions(),
        "notes": [note.format(slip_share=config.data.slip_share) for note in config.notes],
    }
    if hosts.is_first():
        files.write_text(workdir / "final_results.json", json.dumps(results, indent=1) + "\n")
        report.write(workdir)
    return results
