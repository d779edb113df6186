"""Scalars of every step to metrics.jsonl (the source of truth), TensorBoard and a progress bar."""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tqdm

from thinkfirst.core import board, files, profiling

FILES = ("metrics.jsonl", "completions.jsonl")


class Writer:
    """Appends rows to the JSONL files of a workdir.

    Opened at step n it first drops rows of later steps: a resumed run leaves the file an uninterrupted one would.
    """

    def __init__(self, workdir: pathlib.Path, *, step: int) -> None:
        self._workdir = workdir
        workdir.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            _truncate_after(workdir / name, step)
        self._board = board.Board(workdir / "tensorboard", first_step=step + 1)

    def scalars(self, row: dict[str, Any]) -> None:
        """One row of metrics.jsonl; its numbers go to TensorBoard too; one that is not finite is null, or left out."""
        self._append("metrics.jsonl", [row])
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
        finite = {f"{row['stage']}/{name}": value for name, value in numbers.items() if math.isfinite(value)}
        self._board.scalars(row["step"], finite)

    def completions(self, rows: list[dict[str, Any]]) -> None:
        """Rows of completions.jsonl."""
        self._append("completions.jsonl", rows)

    def sync(self) -> None:
        """All rows are on the disk, not only with the system, when this returns: a checkpoint may speak of them."""
        for name in FILES:
            with open(self._workdir / name, "a", encoding="utf-8") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        self._board.close()

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        with open(self._workdir / name, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(_finite(row)) + "\n" for row in rows)


class Nowhere:
    """A writer on a host that does not write."""

    def scalars(self, row: dict[str, Any]) -> None: ...

    def completions(self, rows: list[dict[str, Any]]) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class Clock:
    """Seconds spent in named phases of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside to `time/name`; a profile calls them that too."""
        start = time.perf_counter()
        with profiling.phase(name):
            yield
        key = f"time/{name}"
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - start


def progress(stage: str, start: int, stop: int) -> tqdm.tqdm:
    """A progress bar on a terminal, a line now and then elsewhere."""
    terminal = sys.stderr.isatty()
    return tqdm.tqdm(
        desc=stage,
        initial=start,
        total=stop,
        unit="step",
        dynamic_ncols=terminal,
        ascii=not terminal,
        mininterval=0.2 if terminal else 15,
        maxinterval=1 if terminal else 30,
    )


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _truncate_after(path: pathlib.Path, step: int) -> None:
    """Drops rows of steps after `step`, and a last line that a kill cut short."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    kept = [line for line in whole if json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        files.write_text(path, "".join(kept))
