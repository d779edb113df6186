"""A profile of some steps of a run: the trace that xprof opens, and a page of text that needs no viewer.

Tracing begins before the first of the steps and ends after the last, so that no other step knows of it.  Nothing is
waited for that a step does not wait for anyway.  docs/profiling.md says how to read what comes out.
"""

import pathlib
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from thinkfirst.core import files, hosts, runtime, timeline

LEAST = 0.0005  # of the time: what the text leaves out


def phase(name: str) -> jax.profiler.TraceAnnotation:
    """A context: what this host does in it goes by that name in a trace; without one it costs nothing."""
    return jax.profiler.TraceAnnotation(timeline.PHASE + name)


def parse_steps(text: str) -> range:
    """The steps that --profile_steps names: "10:13" are 10, 11 and 12; none for ""."""
    if not text:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 0 < int(found[1]) < int(found[2]):
        raise ValueError(f"--profile_steps={text} must be FIRST:STOP, such as 10:13 for steps 10, 11 and 12")
    return range(int(found[1]), int(found[2]))


def check_port(port: int) -> None:
    """Raises ValueError unless --profile_server can listen there; 0 asks for no server."""
    if not 0 <= port < 2**16:
        raise ValueError(f"--profile_server={port} is no port: they end at 65535")
    with socket.socket() as free:  # JAX would say that it cannot have it, and go on
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("", port))
        except OSError as error:
            raise ValueError(f"--profile_server={port}: {error.strerror}") from error


def serve(port: int) -> None:
    """Lets xprof ask this process for a trace at any time; JAX finds its devices first."""
    if port:
        jax.profiler.start_server(port)
        hosts.say(f"profiles can be asked for at port {port} of every host")


class Window:
    """The steps of a call that are profiled, into the folder `profile` of a workdir.

    It closes with the last of them, or where their stage or the call ends, and does not open again.
    """

    def __init__(self, workdir: pathlib.Path, steps: range) -> None:
        self._folder, self._steps = workdir / "profile", steps
        self._session = f"steps_{steps.start}_{steps.stop}" if steps else ""
        self._taken: list[int] = []
        self._open = self._closed = False

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around everything that is done for a step."""
        if number not in self._steps or self._closed:
            yield
            return
        if not self._open:
            self._begin()
        with jax.profiler.StepTraceAnnotation(timeline.STEP, step_num=number):
            yield
        self._taken.append(number)
        if number == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Ends the trace and says where the time went, if a step was traced."""
        if not self._open:
            return
        self._open, self._closed = False, True
        jax.profiler.stop_trace()
        if not self._taken:
            return
        text = self._summary()
        mine = "summary.txt" if hosts.is_first() else f"summary_{jax.process_index()}.txt"
        files.write_text(self._folder / mine, text)
        hosts.say(f"\n{text}\n{self._folder}/")

    def end(self) -> None:
        """Says so if the call ends and not all of the steps were profiled."""
        if missing := [step for step in self._steps if step not in self._taken]:
            hosts.say(f"--profile_steps: this call took {len(self._taken)} of these steps; not {missing[0]}")

    def _begin(self) -> None:
        if not hosts.is_first():  # who may share the first one's disk, and even its name
            self._session += f"_host_{jax.process_index()}"
        shutil.rmtree(self._at(), ignore_errors=True)  # that of an earlier call
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # would slow the host down, and fill the trace
        options.session_id = self._session
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._open = True

    def _at(self) -> pathlib.Path:
        return self._folder / "plugins" / "profile" / self._session

    def _summary(self) -> str:
        paths = [str(path) for path in self._at().glob("*.xplane.pb")]
        if len(paths) != 1:
            raise OSError(f"{self._at()}: no trace came of it; was another one being taken of this process?")
        found = timeline.read(jax.profiler.ProfileData.from_file(paths[0]))
        seconds = timeline.table(found, self._taken, program_texts())
        length = sum(end - start for start, end in (found.steps[step] for step in self._taken)) * 1e-9
        versions = runtime.versions()
        about = f"JAX {versions['jax']}, {len(found.devices)} x {versions['device']}, {time.strftime('%F')}"
        return summary(seconds, length, self._taken, about=about)


NOTHING = Window(pathlib.Path(), range(0))


def program_texts() -> timeline.Programs:
    """The texts of the compiled programs that this process holds, by name."""
    found: dict[str, list[Any]] = {}
    for program in jax.local_devices()[0].client.live_executables():
        for module in program.hlo_modules():
            found.setdefault(module.name, []).append(module)
    return lambda name: [module.to_string() for module in found.get(name, ())]


def summary(seconds: Mapping[timeline.Path, float], length: float, steps: Sequence[int], *, about: str) -> str:
    """The page of text: where `length` seconds of steps went, by phase and then by scope, and how much is explained."""
    lines = [
        f"steps {steps[0]} to {steps[-1]}: {length / len(steps):.3f} s a step; {about}",
        "",
        f"{'s a step':>9} {'share':>7} {'itself':>7}",
    ]
    own = {path: spent for path, spent in seconds.items() if path}
    for path, total, itself in _tree(own):
        if total / length >= LEAST:
            name = "  " * (len(path) - 1) + path[-1]
            lines.append(f"{total / len(steps):9.3f} {total / length:7.1%} {itself / length:7.1%}  {name}")
    lines += ["", "by scope, wherever it is:"]
    for name in timeline.SCOPES:
        inside = sum(spent for path, spent in own.items() if name in path[1:])
        if inside / length >= LEAST:
            lines.append(f"{inside / len(steps):9.3f} {inside / length:7.1%}          {name}")
    outside = seconds.get((), 0.0) / length
    unnamed = sum(spent for path, spent in own.items() if timeline.NO_SCOPE in path) / length
    lost = abs(1 - sum(seconds.values()) / length)  # of a trace that is not whole
    lines += [
        "",
        f"accounted for: {1 - outside - unnamed - lost:.1%}; outside of all phases {outside:.1%}, "
        f"operations in no scope {unnamed:.1%}, lost {lost:.1%}",
    ]
    return "\n".join(lines) + "\n"


def _tree(own: Mapping[timeline.Path, float]) -> Iterator[tuple[timeline.Path, float, float]]:
    """(path, all of its time, its own) of every path and of those around it; the longest first among its like."""
    total: dict[timeline.Path, float] = {}
    for path, spent in own.items():
        for depth in range(1, len(path) + 1):
            total[path[:depth]] = total.get(path[:depth], 0.0) + spent

    def below(around: timeline.Path) -> Iterator[tuple[timeline.Path, float, float]]:
        inside = [path for path in total if path[:-1] == around]
        for path in sorted(inside, key=lambda path: -total[path]):
            yield path, total[path], own.get(path, 0.0)
            yield from below(path)

    return below(())
