"""Says what a recipe takes on a TPU slice, with no TPU and no weights: memory, largest micro-batch, FLOPs, time, hours.

python -m thinkfirst.launch.plan --recipe=show_work_gemma3_1b --topology=v5e:2x4 [--out=plan.json] [--set key=value ...]

The rollout, the scoring and the update of every GRPO stage, and the update of every SFT stage, are compiled for the
slice.  The exit status is 0 if all of them fit, 1 if one does not, 2 for input that cannot be used.
"""

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import jax
from absl import flags

from thinkfirst.core import config, files
from thinkfirst.core import mesh as mesh_lib
from thinkfirst.kernels.cost import chips
from thinkfirst.launch import recipes
from thinkfirst.models import config as model_config
from thinkfirst.models import weights
from thinkfirst.rl import plan, plan_programs, stages

EFFORT = -1.0  # of the compiler: a quarter of the time for some per cent more memory


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
    roof = chips.roof(topology)
    shape = architecture(recipe)
    mesh = mesh_lib.make(recipe.mesh, mesh_lib.described(topology))
    found: dict[str, Any] = {
        "recipe": recipe.recipe,
        "topology": topology,
        "mesh": dict(mesh.shape),
        "roof": dataclasses.asdict(roof),
        "programs": {},
        "stages": {},
        "assumptions": list(plan.ASSUMPTIONS),
    }
    for stage in recipe.stages:
        if isinstance(stage, stages.Grpo):
            _grpo(found, stage, plan_programs.trained(shape, mesh, stage), roof, recipe)
        elif isinstance(stage, stages.Sft):
            _sft(found, stage, plan_programs.trained(shape, mesh, stage), roof)
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
    if recipe.checkpoint:
        return weights.config(recipe.checkpoint)
    if recipe.architecture not in model_config.BY_NAME:
        raise ValueError(f"architecture={recipe.architecture!r}: there is {', '.join(model_config.BY_NAME)}")
    return model_config.BY_NAME[recipe.architecture]()


def _grpo(
    found: dict[str, Any],
    stage: stages.Grpo,
    subject: plan_programs.Trained,
    roof: chips.Roof,
    recipe: stages.RunConfig,
) -> None:
    """Adds the stage and its programs."""
    parts = stage.micro_batches * subject.shards
    if stage.prompts * stage.group % parts:
        raise ValueError(f"{stage.name}: {stage.prompts} x {stage.group} rows cannot be cut into {parts} equal parts")
    prompt = recipe.max_prompt_tokens
    rows = plan_programs.rows_per_device(stage, subject, prompt)
    settings = {"window": subject.model.config.window, "devices": subject.mesh.size}

    def update(rows: int, remat: Any, micro_batches: int = 1) -> plan.Program:
        _say(f"{stage.name}: compiling the update, {micro_batches} x {rows} rows a device, remat={remat}")
        traced = plan_programs.update(
            stage, subject, rows=rows, prompt=prompt, remat=remat, micro_batches=micro_batches
        )
        return plan.compiled(traced, roof, **settings)

    most, line = plan.largest(lambda rows: update(rows, "full"), roof.hbm_bytes)
    kept = lambda remat: plan_programs.kept_bytes(stage, subject, rows=rows, prompt=prompt, remat=remat)  # noqa: E731
    remat, updated = plan.chosen(
        lambda remat: update(rows, remat, stage.micro_batches), kept, line.at(rows), roof.hbm_bytes
    )
    _say(f"{stage.name}: compiling the rollout")
    rolled_out = plan.rolled_out(stage, subject, roof, prompt=prompt, lanes=recipe.lanes)
    _say(f"{stage.name}: compiling the scoring")
    traced = plan_programs.scoring(stage, subject, rows=rows, prompt=prompt)
    scored = plan.compiled(traced, roof, resident=plan.on_device(subject.opt_state), **settings)
    for name, program in (("rollout", rolled_out), ("scoring", scored), ("update", updated)):
        found["programs"][f"{stage.name}/{name}"] = dataclasses.asdict(program)
    seconds = rolled_out.seconds + stage.num_iterations * updated.seconds
    if stage.loss.correction != "none" and stage.num_iterations > 1:
        seconds += scored.seconds
    found["stages"][stage.name] = {
        "rows_per_device": rows,
        "remat": remat,
        "largest_micro_batch_rows_per_device": most,
        "temporary_bytes_per_row": round(line.slope),
        "step_seconds_estimate": seconds,
        "hours_estimate": seconds * stage.steps / 3600,
    }


def _sft(found: dict[str, Any], stage: stages.Sft, subject: plan_programs.Trained, roof: chips.Roof) -> None:
    """Adds the stage and its program."""
    parts = stage.micro_batches * subject.shards
    if stage.batch_size % parts:
        raise ValueError(f"{stage.name}: {stage.batch_size} rows cannot be cut into {parts} equal parts")
    _say(f"{stage.name}: compiling the update")
    program = plan.compiled(
        plan_programs.imitation(stage, subject),
        roof,
        window=subject.model.config.window,
        devices=subject.mesh.size,
    )
    found["programs"][f"{stage.name}/update"] = dataclasses.asdict(program)
    found["stages"][stage.name] = {
        "rows_per_device": plan_programs.rows_per_device(stage, subject),
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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cli() -> None:
    """Console script."""
    for name, value in chips.ALONE.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_exec_time_optimization_effort", EFFORT)
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
