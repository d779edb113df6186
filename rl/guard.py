"""What becomes of a step in which something was not finite: it is named, its batch is kept, and too many end the run.

The step itself changes nothing (rl/update.py).  `bad_batches/step_N.npz` then holds the arrays that the step was given,
`step_N.json` beside it which tensors were not finite.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from thinkfirst.core import files

FOLDER = "bad_batches"
FINITE = "finite/"  # metrics named so are True where the tensor was finite, and are no scalars for the log

# What a train step checks, cause before consequence: a compiled program returns its results in another order.
CAUSES = ("advantage", "sampler_logp", "old_logp", "ref_logp", "logp", "loss", "gradient", "gradient_norm", "update")


class TooManyBadSteps(RuntimeError):
    """So many steps in a row had something that is not finite that the run must not go on."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """Which tensors of a step were not finite, cause before consequence, and the arrays the step was given."""

    tensors: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(self.tensors[:3])
        return shown + (f" and {len(self.tensors) - 3} more" if len(self.tensors) > 3 else "")


def finite_leaves(name: str, tree: Any) -> dict[str, Bool[Array, ""]]:
    """`name/path` -> whether that leaf of the tree is finite everywhere."""
    flat = jax.tree.flatten_with_path(tree)[0]
    return {name + "/" + _path(path): jnp.isfinite(leaf).all() for path, leaf in flat}


def not_finite(trees: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the leaves of trees on the device that are not finite."""
    found: dict[str, Any] = {}
    for name, tree in trees.items():
        found |= jax.device_get(jax.jit(finite_leaves, static_argnums=0)(name, tree))
    return tuple(name for name, fine in found.items() if not fine)


def fault(
    wrong: tuple[str, ...],
    rows: Any,
    *,
    problems: Sequence[str] = (),
    rewards: Mapping[str, np.ndarray] | None = None,
    trees: Mapping[str, Any],
) -> Fault | None:
    """What is to be told of a step in which tensors were `wrong`, None if none was.

    `rows` is the batch and `rewards` what its advantages came from, on the host; of `trees`, parameters and optimiser
    on the device, the leaves that are not finite are named first.
    """
    if not wrong:
        return None
    flat = jax.tree.flatten_with_path(rows)[0]
    arrays = {_path(path): np.asarray(leaf) for path, leaf in flat}
    return Fault((*not_finite(trees), *wrong), {**arrays, **(rewards or {})}, tuple(problems))


def split(metrics: Mapping[str, Any]) -> tuple[dict[str, float], tuple[str, ...]]:
    """(the scalars of a train step's metrics, names of the tensors that were not finite)."""
    scalars = {name: float(value) for name, value in metrics.items() if not name.startswith(FINITE)}
    wrong = [name.removeprefix(FINITE) for name, fine in metrics.items() if name.startswith(FINITE) and not fine]
    return scalars, tuple(sorted(wrong, key=lambda name: CAUSES.index(name.split("/")[0])))


def place_of(workdir: pathlib.Path, place: Mapping[str, Any]) -> pathlib.Path:
    """Where the batch of a bad step is kept."""
    return workdir / FOLDER / f"step_{place['step']}.npz"


def write(workdir: pathlib.Path, fault: Fault, place: Mapping[str, Any]) -> pathlib.Path:
    """Keeps the batch of a bad step; `place` says which step it was, under the names of metrics.jsonl."""
    content = io.BytesIO()
    arrays: dict[str, Any] = dict(fault.arrays)
    np.savez(content, **arrays)
    path = place_of(workdir, place)
    files.write_bytes(path, content.getvalue())
    about = {**place, "not_finite": fault.tensors, "problems": fault.problems}
    files.write_text(path.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    return path


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
