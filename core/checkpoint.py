"""The state of a stage on disk: arrays by Orbax, a small JSON beside them, a manifest of both, some steps kept.

    checkpoints/<stage>/<step>/arrays/           Orbax
    checkpoints/<stage>/<step>/meta.json         counters, and what the run is made of
    checkpoints/<stage>/<step>/MANIFEST.json     sha256 of each file (core/manifest.py), written last

A step appears under its name only when it is whole.  It is written while training goes on, from a copy on the host: a
stage's state is its adapter and optimiser (or, in pre-training, the base), so that the copy is small and a save every
few steps costs little.  Base weights are never written here; meta.json has their digest.

The first host writes and reads, the others get what they keep from it.  That is why Orbax is used through the interface
that can leave processes out (its v1 calls a collective of all of them in every save, in 0.12).
"""

import concurrent.futures
import dataclasses
import functools
import json
import math
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from thinkfirst.core import hosts, manifest

T = TypeVar("T")
_ARRAYS, _META = "arrays", "meta.json"
MAX_FAILED_SAVES = 2  # in a row


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which saved steps of a stage stay: the last ones, those with the best score, and one in so many (0: none)."""

    last: int = 2
    best: int = 1
    every: int = 0

    def __post_init__(self) -> None:
        if self.last < 1 or self.best < 0 or self.every < 0:
            raise ValueError(f"keep: {self.last=} must be at least 1, {self.best=} and {self.every=} not negative")

    def of(self, scores: dict[int, float | None]) -> set[int]:
        """The steps that stay; `scores` has one for every saved step, None where it is not known."""
        steps = sorted(scores)
        known = [step for step in steps if scores[step] is not None]
        best = sorted(known, key=lambda step: (scores[step], step))[len(known) - self.best :] if self.best else []
        return {*steps[-self.last :], *best, *(step for step in steps if self.every and step % self.every == 0)}


class Checkpoints:
    """Saved steps of one stage.  All processes call all of its methods alike.

    `written` is called in the background by the first host when a step is on disk; its failure is that of the save.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        *,
        keep: Keep | None = None,
        written: Callable[[], object] = lambda: None,
    ) -> None:
        self._folder = pathlib.Path(folder).absolute()
        self._keep = keep or Keep()
        self._written = written
        only_first = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="checkpoint"
        )
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=only_first)
        self._orbax = ocp.Checkpointer(handler, multiprocessing_options=only_first)
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        self._failed = 0

    def steps(self) -> list[int]:
        """Steps on disk, ascending; a save that was cut short is not among them."""
        return hosts.told(self._on_disk)

    def save(self, step: int, state: Any, meta: dict[str, Any], *, score: float | None = None) -> None:
        """Writes `state` and `meta` as `step` in the background, once the save before it is on disk.

        That one's failure is told here: training goes on from what the disk has, but after two in a row OSError ends
        it.  `score`, the larger the better, is what `keep.best` goes by.
        """
        self.wait()
        copy = hosts.fetched(state)
        if hosts.is_first():
            known = score if score is not None and math.isfinite(score) else None
            self._pending = (step, self._writer.submit(self._write, step, copy, {**meta, "score": known}))

    def wait(self, *, last: bool = False) -> None:
        """Returns when nothing is being written any more; with `last`, a save that failed is an OSError at once."""
        hosts.told(lambda: self._settle(last))

    def restore(self, step: int, like: T) -> tuple[T, dict[str, Any]]:
        """(state, meta) of `step`; `like` gives structure, shapes, dtypes and shardings.

        manifest.Damaged names a file that is not what was written, ValueError what does not fit the run.
        """
        found: list[Any] = []  # of the first host only
        meta = hosts.told(lambda: self._read(step, like, found))
        return hosts.placed(found[0] if found else like, like), meta

    def newest(self, like: T) -> tuple[int, T, dict[str, Any]] | None:
        """(step, state, meta) of the newest sound step; those found damaged are named, and put aside as `N.damaged`."""
        found: list[Any] = []
        newest = hosts.told(lambda: self._newest(like, found))
        if newest is None:
            return None
        return newest[0], hosts.placed(found[0] if found else like, like), newest[1]

    def close(self) -> None:
        """Ends the thread that writes, when it is done."""
        self._writer.shutdown()
        self._orbax.close()

    def _on_disk(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def _settle(self, last: bool) -> None:
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        error = future.exception()
        if error is None:
            self._failed = 0
            return
        if not isinstance(error, OSError | ValueError):  # Orbax tells of a full disk by a ValueError
            raise error
        self._failed += 1
        there = self._on_disk()
        on = f"the last good save is step {there[-1]}" if there else "there is no save yet"
        told = f"{self._folder / str(step)}: the save failed: {error}; {on}"
        if last or self._failed >= MAX_FAILED_SAVES:
            raise OSError(told) from error
        print(f"{told}; training goes on", flush=True)

    def _write(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        part, place = self._folder / f".{step}.part", self._folder / str(step)
        for left in self._folder.glob(".*.part"):
            shutil.rmtree(left)
        part.mkdir(parents=True)
        try:
            self._orbax.save(part / _ARRAYS, args=ocp.args.PyTreeSave(state))
            (part / _META).write_text(json.dumps(meta, indent=1) + "\n")
            manifest.write(part, step)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)  # what there is of it may be what fills the disk
            raise
        self._drop(step)
        part.rename(place)
        manifest.sync_folder(self._folder)
        scores = {one: self._score(one) for one in self._on_disk()}
        for old in scores.keys() - self._keep.of(scores):
            self._drop(old)
        self._written()

    def _drop(self, step: int) -> None:
        """Removes a step; its name goes first, so that no half of it is ever taken for a checkpoint."""
        if (place := self._folder / str(step)).exists():
            place.rename(gone := self._folder / f".{step}.gone.part")
            shutil.rmtree(gone)

    def _score(self, step: int) -> float | None:
        try:
            return json.loads((self._folder / str(step) / _META).read_text())["score"]
        except (OSError, ValueError, KeyError):
            return None  # damaged: restoring it says so

    def _newest(self, like: Any, found: list[Any]) -> tuple[int, dict[str, Any]] | None:
        damaged = []
        for step in reversed(self._on_disk()):
            try:
                return step, self._read(step, like, found)
            except manifest.Damaged as error:
                damaged.append(f"{error}")
                print(f"damaged checkpoint, not used: {error}", flush=True)
                aside = self._folder / f"{step}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                (self._folder / str(step)).rename(aside)
        if damaged:
            raise ValueError(f"no sound checkpoint is left in {self._folder}: {'; '.join(damaged)}")
        return None

    def _read(self, step: int, like: Any, found: list[Any]) -> dict[str, Any]:
        """The meta of a step, whose arrays are put into `found` as the host's."""
        path = self._folder / str(step)
        if not path.is_dir():
            raise ValueError(f"{path}: there is no such checkpoint")
        manifest.verify(path, step)
        there, wanted = _leaves(self._orbax.metadata(path / _ARRAYS).item_metadata.tree), _leaves(like)
        if differing := sorted({name for name, _ in there.items() ^ wanted.items()}):
            one = differing[0]
            what = f"{one} is {there.get(one)}, expected {wanted.get(one)} ({len(differing)} differ)"
            raise ValueError(f"{path}: this checkpoint does not fit the run: {what}")
        hosted = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), like)
        found.append(self._orbax.restore(path / _ARRAYS, args=ocp.args.PyTreeRestore(item=like, restore_args=hosted)))
        return json.loads((path / _META).read_text())


def _leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Path -> (shape, dtype) of every array of a tree, whatever its nodes are made of."""
    flat = jax.tree.flatten_with_path(tree)[0]
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in flat}
