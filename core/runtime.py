"""The process: how long it may run, when it is to stop, where compiled programs are kept, which versions it runs on."""

import importlib.metadata
import os
import pathlib
import platform
import time

import jax

from thinkfirst.core import hosts

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece", "safetensors")


class Stopped(Exception):
    """A step was left before its end: the process was told to stop.  What the step began is to be done anew."""


class Budget:
    """How many more steps and seconds this call may take, 0 for no limit; and whether it was told to end.

    All processes of a run ask alike and get the same answer: the clock is the first one's, a preemption is agreed upon
    by JAX.  `where` and `beaten` tell a watchdog what the process does, and since when.
    """

    def __init__(self, *, max_steps: int = 0, max_seconds: float = 0.0) -> None:
        if max_steps < 0 or max_seconds < 0:
            raise ValueError(f"limits must not be negative: {max_steps=} {max_seconds=}")
        self._steps = max_steps
        self._deadline = time.monotonic() + max_seconds if max_seconds else float("inf")
        self._taken = self._polls = 0
        self.preempted = False
        self.where, self.beaten = "start", time.monotonic()

    def take(self) -> None:
        """Counts one step."""
        self._taken += 1

    def spent(self) -> bool:
        """True when no further step may begin."""
        return bool(self._steps and self._taken >= self._steps) or self._told_to_stop()

    def check(self, where: str) -> None:
        """Raises Stopped when the work in hand is to be left: asked between its parts, of which `where` names one."""
        self.beat(where)
        if self._told_to_stop():
            raise Stopped(where)

    def beat(self, where: str) -> None:
        """Says what is done from here on."""
        self.where, self.beaten = where, time.monotonic()

    def _told_to_stop(self) -> bool:
        self._polls += 1
        self.preempted = self.preempted or hosts.preempted(self._polls)
        late = self._deadline < float("inf") and hosts.told(lambda: time.monotonic() >= self._deadline)
        return self.preempted or late


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers, and the device."""
    found = {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
    for package in _PACKAGES:
        found[package] = importlib.metadata.version(package)
    return found


def compile_cache() -> pathlib.Path:
    """Where compiled programs are kept across runs: JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    default = pathlib.Path.home() / ".cache" / "thinkfirst" / "jax"
    return pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", default))


def use_compile_cache(*, scopes: bool = False) -> None:
    """Compiled programs are kept across runs; with `scopes`, one that was kept with other named scopes is not taken."""
    jax.config.update("jax_compilation_cache_dir", str(compile_cache()))
    jax.config.update("jax_compilation_cache_include_metadata_in_key", scopes)


def split_cpu(parts: int) -> None:
    """Makes the CPU look like `parts` devices, so that data-parallel shards fill its cores; before JAX starts."""
    if os.environ.get("JAX_PLATFORMS") == "cpu" and "xla_force_host_platform_device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        jax.config.update("jax_num_cpu_devices", parts)
