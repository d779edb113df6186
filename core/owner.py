"""One process at a time writes a workdir.

The lock is the kernel's (flock), so it goes with the process that holds it: kill -9 leaves a file behind, and no lock.
"""

import fcntl
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager

FILE_NAME = ".owner"


@contextmanager
def of(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a workdir until the block ends; ValueError names the process that has it.

    A workdir that was made for this, and in which nothing was begun, is gone afterwards.
    """
    path = workdir / FILE_NAME
    made = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            whose = file.read().strip() or "it does not say whose"
            raise ValueError(f"{workdir}: another process writes here: {whose}; use another --workdir") from None
        if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            raise ValueError(f"{workdir}: another process has just ended here; try again")
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")}) + "\n")
        file.flush()
        try:
            yield
        finally:
            if made and list(workdir.iterdir()) == [path]:
                path.unlink()
                workdir.rmdir()
