"""What each part of show_work's reward does: on four canned outputs, and with --train in short real training runs.

    python -m thinkfirst.launch.ablate                                    the table, at once
    python -m thinkfirst.launch.ablate --train [--seeds=0,1,2] [--workdir=runs/ablate] [--set key=value]

Training takes the recipe show_work_tiny: for every seed one SFT, and from its model one GRPO with each reward (rl/
ablation.py), which differ in nothing else.  --set reaches the recipe: stages.grpo.steps=100.  A call that was cut short
goes on where it was; the table and the picture are written at the end, to ablation.md, ablation.json and ablation.png.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

from absl import flags

from thinkfirst.core import config, files, runtime
from thinkfirst.launch import show_work
from thinkfirst.rl import ablation, loop, pipeline, stages


def define_flags() -> flags.FlagValues:
    """The command line."""
    line = flags.FlagValues()
    flags.DEFINE_bool("train", default=False, help="train with each reward, and compare them", flag_values=line)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "of the training runs", flag_values=line)
    flags.DEFINE_multi_string("set", [], "key=value: changes one setting of the recipe", flag_values=line)
    flags.DEFINE_string("workdir", "runs/ablate", "where the training runs are kept", flag_values=line)
    flags.DEFINE_float("max_seconds", 0.0, "stop training after this many seconds (0: no limit)", flag_values=line)
    return line


def main(argv: list[str]) -> int:
    """Exit status: 0 done or cut short as asked, 2 for input that cannot be used."""
    line = define_flags()
    if "--help" in argv:
        print(f"{__doc__}\n{line.get_help()}")
        return 0
    try:
        if len(rest := line(argv)) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}")
        if not line.train:
            print("\n".join(ablation.canned_lines()))
            return 0
        _train(line)
    except loop.OutOfBudget:
        print(f"stopped as asked; the same command goes on from here ({line.workdir})")
    except (ValueError, flags.Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _train(line: flags.FlagValues) -> None:
    wrong = [seed for seed in line.seeds if not seed.isdecimal()]
    if wrong or len(set(line.seeds)) < len(line.seeds) or not line.seeds:
        raise ValueError(f"--seeds={','.join(line.seeds)}: different whole numbers, such as 0,1,2")
    chosen = config.override(show_work.show_work_tiny(), line.set)
    workdir, budget = pathlib.Path(line.workdir), runtime.Budget(max_seconds=line.max_seconds)
    runtime.split_cpu(chosen.cpu_devices)
    runtime.use_compile_cache()
    grpo = next(stage for stage in chosen.stages if isinstance(stage, stages.Grpo))
    print(f"reads {chosen.checkpoint}; writes {workdir}/", flush=True)
    evaluations: dict[str, list[Any]] = {}
    metrics: dict[str, list[Any]] = {}
    for seed in map(int, line.seeds):
        base = workdir / f"seed_{seed}" / "sft"
        pipeline.run(_warm(chosen, seed, base / "model"), base, budget)
        for name, rewards in ablation.designs(grpo.steps).items():
            folder = workdir / f"seed_{seed}" / name.replace("+ ", "with_").replace(" ", "_")
            print(f"seed {seed}: {name}", flush=True)
            results = pipeline.run(_rewarded(chosen, seed, base / "model", rewards), folder, budget)
            evaluations.setdefault(name, []).append(results["evaluations"][-1])
            rows = files.read_json_lines(folder / "metrics.jsonl")
            metrics.setdefault(name, []).append([row.fields for row in rows])
    shown = ablation.trained_lines(evaluations)
    files.write_text(workdir / "ablation.md", "\n".join(shown) + "\n")
    files.write_text(workdir / "ablation.json", json.dumps(evaluations, indent=1) + "\n")
    ablation.picture(metrics, workdir / "ablation.png")
    print("\n".join(["", *shown, "", f"{workdir}/ablation.md  {workdir}/ablation.png  {workdir}/ablation.json"]))


def _warm(chosen: stages.RunConfig, seed: int, model: pathlib.Path) -> stages.RunConfig:
    """The SFT that all rewards of a seed start from, written as a model of its own."""
    sft = next(stage for stage in chosen.stages if isinstance(stage, stages.Sft))
    return dataclasses.replace(
        chosen, recipe="ablate_sft", seed=seed, stages=(sft, stages.Merge(), stages.Export(folder=str(model))), notes=()
    )


def _rewarded(
    chosen: stages.RunConfig, seed: int, model: pathlib.Path, rewards: stages.RewardSchedule
) -> stages.RunConfig:
    """GRPO with one of the rewards."""
    grpo = next(stage for stage in chosen.stages if isinstance(stage, stages.Grpo))
    last = [stage for stage in chosen.stages if isinstance(stage, stages.Evaluate)][-1]
    return dataclasses.replace(
        chosen,
        recipe="ablate_grpo",
        seed=seed,
        checkpoint=str(model),
        stages=(dataclasses.replace(grpo, rewards=rewards), last),
        notes=(),
    )


def cli() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
