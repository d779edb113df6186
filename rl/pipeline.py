"""A recipe's stages, one after the other, in a workdir that remembers how far they got.

A finished stage is never repeated: its adapter is read back, its evaluation kept.  Base weights are read from where the
recipe has them and the adapters of finished stages merged in again, in order.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from thinkfirst.core import config as config_lib
from thinkfirst.core import files, hosts, mesh, mirror, owner, profiling, runtime
from thinkfirst.models import weights
from thinkfirst.rl import (
    evaluate,
    gate,
    grading,
    guard,
    identity,
    loading,
    loop,
    policy,
    reject,
    report,
    stages,
    training,
)
from thinkfirst.rl import standing as standing_lib
from thinkfirst.rl.data import source
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
    given = training.lessons(config)
    subject = loading.from_config(config, workdir)
    for stage in config.stages:
        training.check_rows(stage, mesh.num_row_shards(subject.mesh), config.max_prompt_tokens)
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
                state, _ = training.initial(subject, stage, root)
                done = loop.restore(workdir, stage, state, stage.steps, made_of=made_of)
            else:
                shown = training.shown(stage, given.get(stage.name, problems), workdir, config.seed)
                step_fn, state = training.make_step(subject, stage, shown, root, judge=judge, check=budget.check)
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
            training.install(subject, stage, done.state)
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
                state, _ = training.initial(subject, stage, _root(config, place))
                training.install(subject, stage, loop.restore(workdir, stage, state, step, made_of=made_of).state)
        elif place < num_finished:
            standing.passed(subject, stage, progress)
    return subject


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
