"""Scalars for TensorBoard, written at once and by the caller's thread.

tensorboardX's own SummaryWriter hands them to a thread of its own.  That thread dies of a full disk without a word, and
ten scalars later whoever logs waits for it for ever.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Mapping

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2


class Board:
    """A folder of TensorBoard's; the first error of the system is told, and ends the writing, not the run."""

    def __init__(self, folder: pathlib.Path, *, first_step: int) -> None:
        """Rows of an earlier run of the program from `first_step` on are hidden."""
        self._file: event_file_writer.EventsWriter | None = None
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = event_file_writer.EventsWriter(str(folder / "events"), f".{os.getpid()}")
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._file.write_event(event_pb2.Event(wall_time=time.time(), step=first_step, session_log=start))
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """The finite numbers of a step, by name."""
        if self._file is None:
            return
        try:
            for name, value in values.items():
                point = summary.scalar(name, value)
                self._file.write_event(event_pb2.Event(wall_time=time.time(), step=step, summary=point))
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _give_up(self, error: OSError) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None
        print(f"{self._folder}: {error}; goes on without TensorBoard (metrics.jsonl has it all)", flush=True)
