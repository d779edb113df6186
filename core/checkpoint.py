"""The state of a stage on disk: arrays by Orbax, a small JSON beside them, the last few steps kept.

    checkpoints/<stage>/<step>/    one Orbax checkpoint, which appears under this name only when it is whole

Base weights are never written here: a stage's state is its adapter and optimiser (or, in pre-training, the base).
"""

import functools
import json
import pathlib
import shutil
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

T = TypeVar("T")
_ARRAYS, _META = "arrays", "meta.json"


class Checkpoints:
    """Saved steps of one stage."""

    def __init__(self, folder: str | pathlib.Path, *, keep: int = 2) -> None:
        self._folder = pathlib.Path(folder).absolute()
        self._keep = keep
        self._saver = ocp.StandardCheckpointer()

    def steps(self) -> list[int]:
        """Steps on disk, ascending; a save that was cut short is not among them."""
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Writes `state` and `meta` as `step`, then drops all but the newest `keep` steps."""
        part = self._folder / f".{step}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        self._saver.save(part / _ARRAYS, state)
        self._saver.wait_until_finished()
        (part / _META).write_text(json.dumps(meta, indent=1) + "\n")
        shutil.rmtree(self._folder / str(step), ignore_errors=True)
        part.rename(self._folder / str(step))
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self._folder / str(old))

    def restore(self, step: int, like: T) -> tuple[T, dict[str, Any]]:
        """(state, meta) of `step`; `like` gives structure, shapes, dtypes and shardings."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        path = self._folder / str(step)
        try:
            found, wanted = _leaves(self._saver.metadata(path / _ARRAYS).item_metadata.tree), _leaves(abstract)
            if differing := sorted(name for name, _ in found.items() ^ wanted.items()):
                one = differing[0]
                raise ValueError(
                    f"{one} is {found.get(one)}, expected {wanted.get(one)} ({len(set(differing))} differ)"
                )
            state = self._saver.restore(path / _ARRAYS, abstract)
            return state, json.loads((path / _META).read_text())
        except (ValueError, FileNotFoundError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: this checkpoint does not fit the run: {error}") from error


def _leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Path -> (shape, dtype) of every array of a tree, whatever its nodes are made of."""
    flat = jax.tree.flatten_with_path(tree)[0]
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in flat}
