"""Any model on disk as a Hugging Face folder, an Orbax checkpoint in the Flax layout, or a PEFT adapter.

    python -m thinkfirst.launch.export --workdir=runs/demo --format=hf --out=FOLDER

`hf` and `orbax` hold the base with every adapter merged into it.  `peft` holds the adapters alone: those of a run's
stages, side by side as one, that turn the checkpoint the run started from into its policy.
"""

import pathlib
import sys

from absl import flags

from thinkfirst.launch import opening
from thinkfirst.models import lora, peft, weights
from thinkfirst.rl import policy


def define_flags() -> flags.FlagValues:
    """The command line."""
    line = opening.define_flags()
    flags.DEFINE_string("out", None, "folder to write; it may not be there yet", flag_values=line, required=True)
    flags.DEFINE_enum("format", "hf", ["hf", "peft", "orbax"], "of what is written", flag_values=line)
    return line


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 2 for input that cannot be used."""
    return opening.main(argv, define_flags(), __doc__ or "", _export)


def _export(line: flags.FlagValues) -> None:
    out = pathlib.Path(line.out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"--out={out}: is there already")
    subject = opening.open_policy(line)
    print(f"reads {line.checkpoint or line.workdir}, writes {out}/ ({line.format})", flush=True)
    if line.format == "peft":
        _export_adapter(out, subject)
    else:
        if subject.adapter is not None:
            subject.merge()
        weights.save(out, *subject.stored(), form=line.format, words=subject.words, source=subject.source)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")


def _export_adapter(out: pathlib.Path, subject: policy.Policy) -> None:
    adapters = [*subject.merged, *([] if subject.adapter is None else [subject.adapter])]
    if not adapters:
        raise ValueError("there is no adapter to export: the model is a base; --format=hf or orbax writes it")
    if not subject.source:
        raise ValueError("the base of this adapter is not a checkpoint on disk: --format=hf writes both as one")
    peft.save(out, subject.model, lora.concatenate(adapters), base=subject.source)


def cli() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    cli()
