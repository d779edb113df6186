"""What the compiler said of a program for a chip that is not there, kept across runs.

JAX's own cache cannot give such a program back: to read one it wants the device.  A plan needs the numbers alone.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
from typing import Any

import jax

from thinkfirst.core import files
from thinkfirst.kernels.cost import hlo
from thinkfirst.rl import device_memory


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Bytes on one device; of a program that is too large, what the compiler asked for at the peak alone."""

    made: bool
    argument_bytes: int
    peak_bytes: int
    bytes_accessed: int


def compiled(lowered: Any, chip: str, folder: pathlib.Path | None) -> Compiled:
    """The numbers of a lowered program, from `folder` where it was compiled before by the same compiler for `chip`."""
    if folder is None:
        return _asked(lowered)
    path = folder / f"{_key(lowered, chip)}.json"
    if path.is_file():
        return Compiled(**json.loads(path.read_text()))
    found = _asked(lowered)
    files.write_text(path, json.dumps(dataclasses.asdict(found)) + "\n")
    return found


def _asked(lowered: Any) -> Compiled:
    executable, peak = device_memory.compiled(lowered)
    if executable is None:
        return Compiled(made=False, argument_bytes=0, peak_bytes=peak, bytes_accessed=0)
    size = executable.memory_analysis().argument_size_in_bytes
    return Compiled(
        made=True, argument_bytes=size, peak_bytes=peak, bytes_accessed=hlo.program_bytes(executable.as_text())
    )


def _key(lowered: Any, chip: str) -> str:
    """Changes with the program, the chip, the compiler and how hard it tries."""
    compiler = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "libtpu", "thinkfirst")]
    effort = jax.config.values["jax_exec_time_optimization_effort"]
    text = "\n".join((*compiler, chip, str(effort), lowered.as_text()))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
