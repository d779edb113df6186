"""Programs written by a model, run where they can do no harm and cannot tell what a right answer is.

    with pool.Sandbox(num_workers=2) as box:
        outcome, = box.run([protocol.Job(code="def f(x): return x + 1", calls=("f(1)",))])
        assert outcome.values == (2,)

Start it before JAX where that is possible: starting later is safe, but takes the memory at a worse time.
"""

import concurrent.futures
import os
import queue
import sys
from collections.abc import Sequence

from thinkfirst.rl.sandbox import probes, protocol, worker

LAYERS = ("rlimits", "seccomp", "landlock", "namespaces")
REQUIRED = ("rlimits", "seccomp")  # with these a program computes and nothing else: no process, socket, signal or file


class Sandbox:
    """Workers that run jobs, as a context manager.  Entering proves the layers that are active and prints them.

    `layers` are tried, `required` must hold; what the host refuses is said with its reason.  `rlimits` alone stops
    mistakes, not malice.
    """

    def __init__(
        self,
        num_workers: int = 0,
        *,
        limits: protocol.Limits | None = None,
        layers: Sequence[str] = LAYERS,
        required: Sequence[str] = REQUIRED,
    ) -> None:
        unknown = (set(layers) | set(required)) - set(LAYERS)
        if unknown or not set(required) <= set(layers):
            raise ValueError(f"sandbox: layers are {LAYERS}, the required among the tried; got {layers=} {required=}")
        self.num_workers = num_workers or os.cpu_count() or 1
        self.limits = limits or protocol.Limits()
        self.layers, self.required = tuple(layers), tuple(required)
        self.active: tuple[str, ...] = ()
        self.refused: dict[str, str] = {}
        self._idle: queue.SimpleQueue[worker.Worker] = queue.SimpleQueue()
        self._workers: list[worker.Worker] = []
        self._closed = False
        self._threads = concurrent.futures.ThreadPoolExecutor(self.num_workers, thread_name_prefix="sandbox")

    @property
    def level(self) -> str:
        """The active layers, and why others are not."""
        refused = "".join(f"; {layer} refused ({why})" for layer, why in self.refused.items())
        left_out = "".join(f"; {layer} left out" for layer in LAYERS if layer not in self.layers)
        return " + ".join(self.active) + refused + left_out

    def __enter__(self) -> "Sandbox":
        if not sys.platform.startswith("linux"):
            raise ValueError(f"sandbox: needs Linux, this is {sys.platform}")
        try:
            for _ in range(self.num_workers):
                self._workers.append(worker.Worker(self.layers))
                self._prove(self._workers[-1])
                self._idle.put(self._workers[-1])
        except BaseException:
            self.close()
            raise
        print(f"sandbox: {self.level}; workers: {self.num_workers}", flush=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers and what they run."""
        self._closed = True
        for each in self._workers:
            each.hang_up()
        self._threads.shutdown(cancel_futures=True)
        for each in self._workers:
            each.close()

    def run(self, jobs: Sequence[protocol.Job | protocol.Check]) -> list[protocol.Outcome]:
        """One outcome for each job, in order; as many at a time as there are workers."""
        return list(self._threads.map(self._run, jobs))

    def _run(self, asked: protocol.Job | protocol.Check) -> protocol.Outcome:
        idle = self._idle.get()
        try:
            for _ in range(2):
                outcome = idle.run(asked, self.limits)
                if outcome.status != "lost" or self._closed:
                    break
                self._renew(idle)
            return outcome
        finally:
            self._idle.put(idle)

    def _renew(self, lost: worker.Worker) -> None:
        lost.close()
        lost.start()
        self._prove(lost)

    def _prove(self, new: worker.Worker) -> None:
        """Raises unless the worker has what is required and everything it claims holds against a hostile program."""
        self.active, self.refused = tuple(layer for layer in LAYERS if layer in new.active), new.refused
        missing = [layer for layer in self.required if layer not in self.active]
        if missing:
            raise RuntimeError(
                f"sandbox: this host gives no {' and no '.join(missing)} ({self.level}); code of a model is not run "
                "without, unless `required` asks for less"
            )
        outcome = new.run(protocol.Job(probes.CODE, ("probe()",)), protocol.Limits())
        slept = new.run(protocol.Job("", ("__import__('time').sleep(60)",)), protocol.Limits(wall_seconds=0.2))
        holes = probes.holes(outcome.values[0], self.active)
        if slept.status != "deadline":
            holes.append(f"a sleeping program ended as {slept.status}")
        if holes:
            raise RuntimeError(f"sandbox: the self-test failed ({self.level}): {'; '.join(holes)}")
