"""Says what a recipe takes on a TPU slice, with no TPU and no weights: memory, largest micro-batch, FLOPs, time, hours.

python -m thinkfirst.launch.plan --recipe=show_work_gemma3_1b --topology=v5e:2x4 [--out=plan.json] [--set key=value ...]

The rollout, the scoring and the update of every GRPO stage, and the update of every SFT stage, are compiled for the
slice.  The exit status is 0 if all of them fit, 1 if one does not, 2 for input that cannot be used.
"""

import dataclasses
import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from thinkfirst.core import config, files, runtime
from thinkfirst.core import mesh as mesh_lib
from thinkfirst.kernels.cost import chips
from thinkfirst.launch import recipes
from thinkfirst.models import config as model_config
from thinkfirst.models import remat as remat_lib
from thinkfirst.models import weights
from thinkfirst.rl import plan, plan_programs, remat_choice, stages

EFFORT = -1.0  # of the compiler: a quarter of the time for some per cent more memory


@dataclasses.dataclass(frozen=True)
class Compiler:
    """The chip that is compiled for, and where what its compiler says is kept."""

    roof: chips.Roof
    folder: pathlib.Path

    def weigh(self, about: str, traced: Any, counted: int, *, resident: int = 0) -> plan.Program:
        """What the compiler says of a program of `counted` FLOPs; told of before and after: it may take a minute."""
        print(f"{about}: ", end="", file=sys.stderr, flush=True)
        program = plan.compiled(traced, self.roof, counted=counted, resident=resident, cache=self.folder)
        total, verdict = program.peak_bytes + resident, "fits" if program.fits else "does not fit"
        print(f"{total / 1e9:.2f} GB, {verdict}", file=sys.stderr, flush=True)
        return program

    def policy(
        self,
        stage: stages.Grpo | stages.Sft,
        subject: plan_programs.Trained,
        update: Callable[[remat_lib.Name], plan.Program],
        *,
        full_bytes: float = 0.0,
        prompt: int = 0,
    ) -> remat_lib.Name:
        """The policy that training settles on for this slice; `full_bytes` is what "full" needs, where it is known."""
        if stage.remat != "auto":
            return stage.remat
        kept = functools.cache(lambda name: plan_programs.kept_bytes(stage, subject, prompt=prompt, remat=name))
        beside = full_bytes - kept("full") if full_bytes else subject.num_bytes
        return remat_choice.chosen(lambda name: update(name).fits, kept, beside, self.roof.hbm_bytes)


def define_flags() -> flags.FlagValues:
    """The command line."""
    line = flags.FlagValues()
    flags.DEFINE_string("recipe", None, "name of a function in launch/recipes.py", flag_values=line, required=True)
    flags.DEFINE_string("topology", "v5e:2x4", "chip and shape of the slice, such as v5p:2x2x1", flag_values=line)
    flags.DEFINE_multi_string("set", [], "key=value: changes one setting; may be repeated", flag_values=line)
    flags.DEFINE_string("out", "", "write the plan here too, as JSON", flag_values=line)
    return line


def main(argv: list[str]) -> int:
    """Exit status: 0 all fits, 1 something does not, 2 for input that cannot be used."""
    line = define_flags()
    if "--help" in argv:
        print(f"{__doc__}\n{line.get_help()}\n\nrecipes: {', '.join(recipes.RECIPES)}")
        return 0
    try:
        if len(rest := line(argv)) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}")
        found = planned(config.override(recipes.named(line.recipe), line.set), line.topology)
        print("\n".join(lines(found)))
        if line.out:
            files.write_text(pathlib.Path(line.out), json.dumps(found, indent=1) + "\n")
            print(f"wrote {line.out}")
    except (ValueError, flags.Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if found["fits"] else 1


def planned(recipe: stages.RunConfig, topology: str) -> dict[str, Any]:
    """What --out holds."""
    compiler = Compiler(chips.roof(topology), runtime.compile_cache() / "plans")
    shape = architecture(recipe)
    mesh = mesh_lib.make(recipe.mesh, mesh_lib.described(topology))
    found: dict[str, Any] = {
        "recipe": recipe.recipe,
        "topology": topology,
        "mesh": dict(mesh.shape),
        "roof": dataclasses.asdict(compiler.roof),
        "programs": {},
        "stages": {},
        "assumptions": list(plan.ASSUMPTIONS),
    }
    for stage in recipe.stages:
        if isinstance(stage, stages.Grpo):
            _grpo(found, stage, plan_programs.trained(shape, mesh, stage), recipe, compiler)
        elif isinstance(stage, stages.Sft):
            _sft(found, stage, plan_programs.trained(shape, mesh, stage), compiler)
    if not found["stages"]:
        raise ValueError(f"{recipe.recipe} has neither a GRPO nor an SFT stage to plan")
    found["fits"] = all(program["fits"] for program in found["programs"].values())
    last = list(found["stages"].values())[-1]
    found["largest_micro_batch_rows_per_device"] = last.get("largest_micro_batch_rows_per_device")
    found["step_seconds_estimate"] = last["step_seconds_estimate"]
    found["hours_estimate"] = sum(stage["hours_estimate"] for stage in found["stages"].values())
    return found


def architecture(recipe: stages.RunConfig) -> model_config.GemmaConfig:
    """The model's shape: of the checkpoint's config, or the one the recipe names."""
    return dataclasses.replace(_stored(recipe), base_dtype=recipe.base_dtype)


def _stored(recipe: stages.RunConfig) -> model_config.GemmaConfig:
    if recipe.checkpoint:
        return weights.config(recipe.checkpoint)
    if recipe.architecture not in model_config.BY_NAME:
        raise ValueError(f"architecture={recipe.architecture!r}: there is {', '.join(model_config.BY_NAME)}")
    return model_config.BY_NAME[recipe.architecture]()


def _grpo(
    found: dict[str, Any],
    stage: stages.Grpo,
    subject: plan_programs.Trained,
    recipe: stages.RunConfig,
    compiler: Compiler,
) -> None:
    """Adds the stage and its programs."""
    prompt = recipe.max_prompt_tokens
    rows = plan_programs.rows_per_device(stage, subject, prompt)
    resident = plan_programs.on_device(subject.opt_state)

    def step(rows: int, remat: remat_lib.Name, micro_batches: int) -> Any:
        return plan_programs.update(stage, subject, rows=rows, prompt=prompt, remat=remat, micro_batches=micro_batches)

    @functools.cache
    def update(rows: int, remat: remat_lib.Name, micro_batches: int) -> plan.Program:
        about = f"{stage.name}: the update, {micro_batches} x {rows} rows a device, remat={remat}"
        traced = step(rows, remat, micro_batches)
        return compiler.weigh(about, traced, plan.flops_of(traced, subject))

    most, line = plan.largest(lambda rows: update(rows, "full", 1), compiler.roof.hbm_bytes)
    remat = compiler.policy(
        stage, subject, lambda name: update(rows, name, stage.micro_batches), full_bytes=line.at(rows), prompt=prompt
    )
    updated = update(rows, remat, stage.micro_batches)
    shape = plan_programs.engine_shape(stage, subject, prompt=prompt, lanes=recipe.lanes, int8=recipe.int8_cache)
    about = f"{stage.name}: the rollout"
    engine = compiler.weigh(about, plan_programs.rollout(subject, shape), 0, resident=resident)
    rolled_out = plan.rolled_out(stage, subject, shape, compiler.roof, engine)
    scoring = plan_programs.scoring(stage, subject, rows=rows, prompt=prompt)
    counted = plan.flops_of(scoring, subject)
    scored = compiler.weigh(f"{stage.name}: the scoring", scoring, counted, resident=resident)
    for name, program in (("rollout", rolled_out), ("scoring", scored), ("update", updated)):
        found["programs"][f"{stage.name}/{name}"] = dataclasses.asdict(program)
    seconds = rolled_out.seconds + stage.num_iterations * updated.seconds
    if stage.loss.correction != "none" and stage.num_iterations > 1:
        seconds += scored.seconds
    found["stages"][stage.name] = {
        "rows_per_device": rows,
        "remat": remat,
        "flops_by_those_without_remat": updated.flops / plan.flops_of(step(rows, "none", stage.micro_batches), subject),
        "largest_micro_batch_rows_per_device": most,
        "temporary_bytes_per_row": round(line.slope),
        "step_seconds_estimate": seconds,
        "hours_estimate": seconds * stage.steps / 3600,
    }


def _sft(found: dict[str, Any], stage: stages.Sft, subject: plan_programs.Trained, compiler: Compiler) -> None:
    """Adds the stage and its program."""
    rows = plan_programs.rows_per_device(stage, subject)

    @functools.cache
    def update(remat: remat_lib.Name) -> plan.Program:
        about = f"{stage.name}: the update, {stage.micro_batches} x {rows} rows a device, remat={remat}"
        traced = plan_programs.imitation(stage, subject, remat=remat)
        return compiler.weigh(about, traced, plan.flops_of(traced, subject))

    remat = compiler.policy(stage, subject, update)
    program = update(remat)
    found["programs"][f"{stage.name}/update"] = dataclasses.asdict(program)
    found["stages"][stage.name] = {
        "rows_per_device": rows,
        "remat": remat,
        "step_seconds_estimate": program.seconds,
        "hours_estimate": program.seconds * stage.steps / 3600,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The plan as text."""
    limit = found["roof"]["hbm_bytes"]
    shown = [
        f"{found['recipe']} on {found['topology']}, {limit / 2**30:.2f} GiB a device",
        f"{'GB a device':<24}{'arguments':>10}{'temporary':>10}{'beside':>10}{'in all':>10}  fits",
    ]
    for name, program in found["programs"].items():
        sizes = (program["argument_bytes"], program["temporary_bytes"], program["resident_bytes"])
        total = program["peak_bytes"] + program["resident_bytes"]
        verdict = "yes" if program["fits"] else f"no, by {program['over_bytes'] / 1e9:.2f} GB"
        shown.append(f"{name:<24}" + "".join(f"{size / 1e9:>10.2f}" for size in (*sizes, total)) + f"  {verdict}")
    shown.append(f"{'each time, a device':<24}{'TFLOP':>10}{'GB moved':>10}{'seconds':>10}")
    for name, program in found["programs"].items():
        values = (program["flops"] / 1e12, program["bytes_accessed"] / 1e9, program["seconds"])
        shown.append(f"{name:<24}" + "".join(f"{value:>10.3g}" for value in values))
    for name, stage in found["stages"].items():
        for key, value in stage.items():
            shown.append(f"{name}: {key.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else
                         f"{name}: {key.replace('_', ' ')} {value}")  # fmt: skip
    return [*shown, f"hours in all, at least {found['hours_estimate']:.3g}", *(f"  {x}" for x in found["assumptions"])]


def cli() -> None:
    """Console script."""
    for name, value in chips.ALONE.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_exec_time_optimization_effort", EFFORT)
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
