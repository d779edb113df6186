"""What score, generate and export share: the flags that name a model on disk, and opening it.

A model is a Hugging Face folder, an Orbax checkpoint in the Flax layout, or the workdir of a run.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable

from absl import flags

from thinkfirst.core import config, runtime
from thinkfirst.core import mesh as mesh_lib
from thinkfirst.launch import recipes
from thinkfirst.rl import loading, pipeline, policy


@dataclasses.dataclass(frozen=True)
class Settings:
    """What --set reaches."""

    mesh: mesh_lib.MeshConfig = dataclasses.field(default_factory=mesh_lib.MeshConfig)


def define_flags() -> flags.FlagValues:
    """The flags every such program has."""
    line = flags.FlagValues()
    flags.DEFINE_string("checkpoint", "", "Hugging Face folder, Orbax checkpoint or workdir", flag_values=line)
    flags.DEFINE_string("workdir", "", "the same as --checkpoint, for a run", flag_values=line)
    flags.DEFINE_multi_string("adapter", [], "PEFT folder, merged into the model; may be repeated", flag_values=line)
    flags.DEFINE_string("tokenizer", "", "SentencePiece model (default: the one beside the weights)", flag_values=line)
    flags.DEFINE_enum(
        "dtype", None, ["bfloat16", "float32"], "what to compute in (default: what the config names)", flag_values=line
    )
    flags.DEFINE_multi_string("set", [], "key=value, such as mesh.tensor=2; may be repeated", flag_values=line)
    return line


def main(argv: list[str], line: flags.FlagValues, about: str, work: Callable[[flags.FlagValues], None]) -> int:
    """Exit status of a program: 0 done, 2 for input that cannot be used."""
    if "--help" in argv:
        print(f"{about}\n{line.get_help()}")
        return 0
    try:
        if len(rest := line(argv)) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}")
        runtime.use_compile_cache()
        work(line)
    except (ValueError, flags.Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def open_policy(line: flags.FlagValues) -> policy.Policy:
    """The model the flags name, its adapters merged."""
    if bool(line.checkpoint) == bool(line.workdir):
        raise ValueError("name one model: --checkpoint=FOLDER or --workdir=FOLDER")
    folder = pathlib.Path(line.checkpoint or line.workdir)
    settings = config.override(Settings(), line.set)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if (run := _run_of(folder)) is not None:
        subject = pipeline.restore(dataclasses.replace(run, mesh=settings.mesh), folder, dtype=line.dtype or "")
    elif line.workdir:
        raise ValueError(f"{folder}: its config.json is not that of a run; --checkpoint=FOLDER opens other models")
    else:
        devices = mesh_lib.make(settings.mesh)
        subject = loading.from_folder(folder, devices, tokenizer=line.tokenizer, dtype=line.dtype or "")
    loading.merge_adapters(subject, line.adapter)
    return subject


def _run_of(folder: pathlib.Path) -> recipes.stages.RunConfig | None:
    """The recipe, with its settings, of the run a workdir holds; None for any other folder."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        dumped = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    if not (isinstance(dumped, dict) and "recipe" in dumped and "stages" in dumped):
        return None
    try:
        return config.restored(recipes.named(dumped["recipe"]), dumped)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
