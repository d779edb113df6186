"""The processes of a run: connecting them, what one tells the others, and what they have to agree on.

JAX runs the same program on every host.  A host that takes another turn than the rest leaves them waiting in a
collective for ever, so whatever depends on a clock, a signal or a file is decided on the first host and told to all.
The first host alone writes; the others need no disk of the run's.
"""

import json
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
FOR_EVER = 10**7  # seconds
NOT_A_CLUSTER = "coordinator_address should be defined"


def connect(coordinator: str = "", num_processes: int = 0, process: int = -1, *, heartbeat_seconds: int = 60) -> None:
    """Starts the service by which processes find, watch and warn each other: on one host too, before JAX does anything.

    Without it SIGTERM ends a process on the spot; with it, a preemption is something to ask for (`preempted`).  No
    Python handler of SIGTERM may be installed after it: it would take the place of JAX's own.  On TPU pods, Slurm and
    the like all is found out; elsewhere `coordinator` is "host:port" of process 0.
    """
    watch: Any = {"heartbeat_timeout_seconds": heartbeat_seconds, "shutdown_timeout_seconds": 5 * heartbeat_seconds}
    if coordinator:
        if not 0 <= process < num_processes:
            raise ValueError(f"--process={process} must lie below --num_processes={num_processes}, and not below 0")
        # With everything given there is nothing to detect: JAX would still ask a metadata server that may not be there.
        watch["cluster_detection_method"] = "deactivate"
        jax.distributed.initialize(coordinator, num_processes, process, **watch)
        return
    try:
        jax.distributed.initialize(**watch)
    except ValueError as error:
        if NOT_A_CLUSTER not in str(error):
            raise
        with socket.socket() as free:
            free.bind(("localhost", 0))
            alone = f"localhost:{free.getsockname()[1]}"
        # Nobody waits for a process that is alone: a laptop that sleeps is not to find its run dead.
        watch = {"heartbeat_timeout_seconds": FOR_EVER}
        jax.config.update("jax_cpu_collectives_implementation", None)  # between processes: this is one
        jax.distributed.initialize(alone, 1, 0, coordinator_bind_address=alone, **watch)
        if jax.process_count() > 1:  # the chips found each other and the processes did not: each took itself for all
            raise ValueError(
                f"this slice has {jax.process_count()} hosts, of which JAX found only this one: give every host "
                "--coordinator=HOST:PORT, --num_processes and --process"
            ) from error


def preempted(poll: int) -> bool:
    """Whether a host was told to end; true on every host at the same `poll`, a number that grows by one a call."""
    return jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(poll)


def several() -> bool:
    """Whether this process was connected to others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """A line on the first host's standard output."""
    if is_first():
        print(text, flush=True)


def gathered(value: Any) -> list[Any]:
    """The JSON value of every process, on every process, in their order."""
    if jax.process_count() == 1:
        return [value]
    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([mine.size], np.int32)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: mine.size] = mine
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def told(make: Callable[[], T]) -> T:
    """The JSON value that `make` returns on the first host, on every host; its ValueError or OSError is theirs too."""
    if jax.process_count() == 1:
        return make()
    answer: Any = None
    failed: ValueError | OSError | None = None
    if is_first():
        try:
            answer = {"value": make()}
        except (ValueError, OSError) as error:
            failed, answer = error, {"error": str(error)}
    answer = gathered(answer)[0]
    if failed is not None:
        raise failed
    if "error" in answer:
        raise ValueError(f"on the first host: {answer['error']}")
    return answer["value"]


def check_same(found: Mapping[str, Any]) -> None:
    """ValueError names what the hosts were given differently."""
    rows = gathered(dict(found))
    for process, row in enumerate(rows):
        differing = sorted(name for name in rows[0].keys() | row.keys() if rows[0].get(name) != row.get(name))
        if differing:
            name = differing[0]
            raise ValueError(
                f"host {process} differs from host 0 in {', '.join(differing)}: "
                f"{name} is {row.get(name)!r} there, {rows[0].get(name)!r} on host 0"
            )


def fetched(tree: T) -> T:
    """A copy of a tree of arrays on this host, whichever hosts have the parts: nothing the device owns is kept."""
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), jax.device_get(tree))


def placed(host: T, like: T) -> T:
    """Arrays of the first host laid out as those of `like`; what other hosts bring is not looked at."""
    if jax.process_count() > 1:
        empty = lambda leaf: np.zeros(leaf.shape, leaf.dtype)  # noqa: E731
        host = multihost_utils.broadcast_one_to_all(host if is_first() else jax.tree.map(empty, like))
        host = jax.tree.map(np.asarray, host)

    def put(value: Any, leaf: Any) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    return jax.tree.map(put, host, like)
