"""Starts a program again when it died, and gives up when that brings nothing new.

What a program says by its exit status:

    0    done, or cut short as asked            1    stopped by bad steps, or out of memory
    2    input that cannot be used              70   an error of its own, or it hung
    130  interrupted                            143  told to end by SIGTERM; it has saved

0, 1 and 2 are final: the same would happen again.  Whoever sends SIGTERM to the one that watches wants both to end.
"""

import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

FINAL = (0, 1, 2, 130)
PREEMPTED = 143
FRUITFUL_SECONDS = 600.0  # a host that sees no workdir goes by how long the program ran
FIRST_WAIT, LONGEST_WAIT = 2.0, 300.0


def supervise(
    command: Sequence[str],
    *,
    fruitless: int,
    progress: Callable[[], object],
    sleep: Callable[[float], object] = time.sleep,
) -> int:
    """The last exit status of `command`, started again until it is final or `fruitless` starts in a row got no further.

    `progress` is anything that changes as the program gets on.  Waits double from one fruitless start to the next.
    """
    told: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: object) -> None:
        told.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        in_vain = 0
        while True:
            seen, start = progress(), time.monotonic()
            child = subprocess.Popen(command)
            status = child.wait()
            status = 128 - status if status < 0 else status
            if status in FINAL or told:
                return status
            in_vain = 0 if progress() != seen or time.monotonic() - start > FRUITFUL_SECONDS else in_vain + 1
            if in_vain >= fruitless:
                print(f"exit status {status}; {in_vain} starts in a row got no further: not started again", flush=True)
                return status
            wait = min(FIRST_WAIT * 2**in_vain, LONGEST_WAIT)
            print(f"exit status {status}; started again in {wait:.0f} seconds", flush=True)
            sleep(wait)
    finally:
        signal.signal(signal.SIGTERM, before)


def saved_in(workdir: pathlib.Path) -> tuple[str, ...]:
    """What a run has saved: the stages that ended, and names of the steps of the one in hand."""
    progress = workdir / "progress.json"
    steps = [str(path) for path in workdir.glob("checkpoints/*/*") if path.name.isdigit()]
    return (*sorted(steps), progress.read_text() if progress.is_file() else "")
