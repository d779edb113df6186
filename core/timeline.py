"""Where the time of a trace went: the xplane file of jax.profiler, read into seconds by phase and named scope.

A device's time belongs to the operation it runs; of several at once, to the one begun last.  Time between two
operations of one run of a program belongs to the scopes that both are in.  Loops, conditionals and calls are no
operations: what runs inside them is.  So no second of a device is counted twice, however deep loops nest.

Which scopes an operation is in stands in the compiled program (`op_name` of its metadata), by the operation's name; the
trace of a TPU may tell it itself (`tf_op`).
"""

import bisect
import dataclasses
import functools
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Path = tuple[str, ...]

# The named scopes of the compiled programs: rl/ names what a program is at, kernels/*/api.py which kernel.
SCOPES = (
    *("rollout", "prefill", "decode", "sample", "timing", "score", "update"),
    *("flash_attention", "decode_attention", "token_logprob"),
)
BACKWARD = "backward"  # what differentiation makes of a scope

STEP, PHASE = "step", "phase:"  # how core/profiling.py marks steps and the host's phases
HOST, WAITING, COMPILING, NO_SCOPE = "host", "waits for other devices", "compiling", "no scope"
_IDLE, _BUSY = ("",), ("busy",)
_CONTAINERS = ("while", "conditional", "call")
_NO_WORK = ("parameter", "constant", "tuple", "get-tuple-element")
_CALL, _COMPILES = "PjitFunction(", ("trace_to_jaxpr", "lower_", "backend_compile")  # as JAX marks them
_NO_OPERATION = ("end: ", "ThreadpoolListener")  # most events of a CPU: passed over without a look at their stats


class Op(NamedTuple):
    """An operation as a device ran it; `run` is None where the trace does not tell runs of a program apart."""

    start: float
    end: float
    name: str
    program: str
    run: Hashable
    op_name: str


class Piece(NamedTuple):
    """Some time, in nanoseconds, and what it belongs to."""

    start: float
    end: float
    path: Any


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a trace tells: when each step was, the host's phases in it, the operations of each device."""

    steps: dict[int, tuple[float, float]]
    phases: list[Piece]
    devices: dict[str, list[Op]]


# HLO texts of the programs of that name
Programs = Callable[[str], Sequence[str]]


def read(data: Any) -> Trace:
    """A trace from `jax.profiler.ProfileData`."""
    steps: dict[int, tuple[float, float]] = {}
    phases: list[Piece] = []
    devices: dict[str, list[Op]] = {}
    for plane in data.planes:
        if plane.name == "/host:CPU":
            for line in plane.lines:
                _read_host(line, steps, phases, devices)
        elif re.match(r"/device:(TPU|GPU):\d+$", plane.name):
            devices[plane.name] = list(_read_device({line.name: line for line in plane.lines}))
    return Trace(steps, phases, devices)


def _read_host(line: Any, steps: dict[int, tuple[float, float]], phases: list[Piece], devices: Any) -> None:
    """Adds steps, and the phases of the thread that takes them; and operations of CPU devices, which threads run."""
    mine: list[Piece] = []
    calls: list[Piece] = []
    compiled: list[float] = []
    taken: dict[int, tuple[float, float]] = {}
    for event in line.events:
        name = event.name
        if name.startswith(_NO_OPERATION):
            continue
        start, end = event.start_ns, event.end_ns
        if name.startswith(PHASE):
            mine.append(Piece(start, end, name.removeprefix(PHASE)))
        elif name.startswith(_CALL):
            calls.append(Piece(start, end, COMPILING))
        elif name.startswith(_COMPILES):
            compiled.append(start)
        elif stats := dict(event.stats):
            if name == STEP and "step_num" in stats:
                taken[stats["step_num"]] = (start, end)
            elif "hlo_op" in stats:
                run = (stats["program_id"], stats["run_id"])
                op = Op(start, end, stats["hlo_op"], stats["hlo_module"], run, "")
                devices.setdefault(f"CPU {stats.get('device_ordinal', 0)}", []).append(op)
    if taken:
        steps |= taken
        phases += mine
        compiled.sort()
        for call in calls:
            first = bisect.bisect(compiled, call.start)
            if first < len(compiled) and compiled[first] < call.end:
                phases.append(call)


def _read_device(lines: Mapping[str, Any]) -> Iterator[Op]:
    """The operations of a TPU or a GPU."""
    runs = sorted((run.start_ns, run.end_ns, run.name) for run in lines["XLA Modules"].events) if _is_tpu(lines) else []
    starts = [start for start, _, _ in runs]
    for line in [lines["XLA Ops"]] if _is_tpu(lines) else lines.values():
        for event in line.events:
            stats = dict(event.stats)
            name, op_name = stats.get("hlo_op"), str(stats.get("tf_op", ""))
            program, run = str(stats.get("hlo_module", "")), None
            if runs:
                place = bisect.bisect(starts, event.start_ns) - 1
                if place >= 0 and event.start_ns < runs[place][1]:
                    program, run = runs[place][2].partition("(")[0], place
                name = name or event.name.removeprefix("%").partition(" ")[0]
            if name:
                yield Op(event.start_ns, event.end_ns, name, program, run, op_name.removesuffix(":"))


def _is_tpu(lines: Mapping[str, Any]) -> bool:
    return "XLA Ops" in lines and "XLA Modules" in lines


def path_of(op_name: str) -> Path:
    """The scopes in an operation's name, outer ones first, each once.

    jit(step)/update/while/body/transpose(jvp(flash_attention))/dot_general -> update, backward, flash_attention
    """
    plain = re.sub(r"\bjit\([^()]*\)", "", op_name)
    found: list[str] = []
    for word in re.findall(r"transpose\(|[\w.\-]+", plain):
        name = BACKWARD if word == "transpose(" else word
        if (name == BACKWARD or name in SCOPES) and name not in found:
            found.append(name)
    return tuple(found)


def paths_in(text: str) -> dict[str, Path | None]:
    """Operation -> its scopes, from a compiled program's text; None for what only holds others.

    One without a name of its own (a copy, a loop that a pass made) is in the scopes of what it calls, or of all its
    neighbours.
    """
    computations: dict[str, list[tuple[str, str, str, str]]] = {}
    here: list[tuple[str, str, str, str]] = []
    for line in text.splitlines():
        if line.endswith("{") and (head := re.match(r"(?:ENTRY )?%?([\w.\-]+) ", line)):
            here = computations.setdefault(head[1], [])
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = .*?\b([a-z][a-z0-9\-]*)\(", line):
            op_name = re.search(r'op_name="([^"]*)"', line)
            called = re.search(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)", line)
            here.append((found[1], found[2], op_name[1] if op_name else "", called[1] if called else ""))
    shared = {
        name: _shared(path_of(op_name) for _, opcode, op_name, _ in rows if op_name and opcode not in _NO_WORK)
        for name, rows in computations.items()
    }
    return {
        name: None
        if opcode in _CONTAINERS
        else path_of(op_name)
        if op_name
        else shared.get(called) or shared[computation]
        for computation, rows in computations.items()
        for name, opcode, op_name, called in rows
    }


def _shared(paths: Iterable[Path]) -> Path:
    """The scopes that all paths begin with."""
    found: Path | None = None
    for path in paths:
        if found is None:
            found = path
        while found != path[: len(found)]:
            found = found[:-1]
    return found or ()


def table(trace: Trace, steps: Iterable[int], programs: Programs) -> dict[Path, float]:
    """(phase, scope, ...) -> its own seconds in those steps, the mean over devices; what is outside of phases: ()."""
    placed = {name: coalesced(pieces(ops, _scopes(ops, programs))) for name, ops in trace.devices.items()}
    busy = coalesced(innermost(Piece(start, end, _BUSY) for ops in placed.values() for start, end, _ in ops))
    phases = innermost(nested(trace.phases))
    seconds: dict[Path, float] = {}
    for step in steps:
        within = trace.steps[step]
        around = overlaps(filled(phases, within, ()), filled(busy, within, _IDLE))
        background = [Piece(start, end, (phase, others)) for start, end, phase, others in around]
        for ops in placed.values() or [[]]:
            for start, end, path, (phase, others) in overlaps(filled(ops, within, _IDLE), background):
                key = _key(phase, path, others)
                seconds[key] = seconds.get(key, 0.0) + (end - start) * 1e-9 / max(1, len(placed))
    return seconds


def _key(phase: Path, path: Path, others: Path) -> Path:
    """What a device's time counts as; () outside of all phases."""
    if not phase:
        return ()
    if path == _IDLE:
        path = (WAITING,) if others == _BUSY else (COMPILING,) if COMPILING in phase else (HOST,)
    around = tuple(name for name in phase if name != COMPILING)
    return (*around, *(name for name in path if name not in around))


def _scopes(ops: Sequence[Op], programs: Programs) -> Callable[[Op], Path | None]:
    """Tells the scopes of an operation: as the trace has them, or by its name, from the text that knows most names."""
    names: dict[tuple[str, Any], set[str]] = {}
    which = lambda op: (op.program, op.run[0] if isinstance(op.run, tuple) else None)  # noqa: E731
    for op in ops:
        names.setdefault(which(op), set()).add(op.name)
    known: dict[tuple[str, Any], dict[str, Path | None]] = {}
    for program, seen in names.items():
        texts = [paths_in(text) for text in programs(program[0])]
        known[program] = max(texts, key=lambda paths: len(seen & paths.keys()), default={})

    @functools.cache
    def scopes(program: tuple[str, Any], name: str, op_name: str) -> Path | None:
        looks_like_one = re.match(rf"({'|'.join(_CONTAINERS)})[.\d]*$", name)
        path = known[program].get(name, None if looks_like_one else ())
        return None if path is None else path_of(op_name) or path or (NO_SCOPE, program[0])

    return lambda op: scopes(which(op), op.name, op.op_name)


def pieces(ops: Sequence[Op], scopes: Callable[[Op], Path | None]) -> list[Piece]:
    """A device's time as disjoint pieces, in order, each of a path."""
    leaves = [Piece(op.start, op.end, (path, op.run, op.program)) for op in ops if (path := scopes(op)) is not None]
    found: list[Piece] = []
    before: Piece | None = None
    for piece in innermost(leaves):
        path, run, program = piece.path
        if before is not None and run is not None and before.path[1] == run and piece.start > before.end:
            both = _shared((before.path[0], path))
            found.append(Piece(before.end, piece.start, both or (NO_SCOPE, program)))
        found.append(Piece(piece.start, piece.end, path))
        before = piece
    return found


def innermost(events: Iterable[Piece]) -> list[Piece]:
    """Disjoint pieces, in order: at every time the event that began last, of those that began at once the shorter."""
    found: list[Piece] = []
    open_: list[Piece] = []
    now = float("-inf")

    def until(time: float) -> None:
        nonlocal now
        while open_:
            top = open_[-1]
            if min(top.end, time) > now:
                found.append(Piece(now, min(top.end, time), top.path))
                now = min(top.end, time)
            if top.end > time:
                return
            open_.pop()

    for event in sorted(events, key=lambda piece: (piece.start, -piece.end)):
        until(event.start)
        now = event.start
        open_.append(event)
    until(float("inf"))
    return found


def nested(events: Iterable[Piece]) -> Iterator[Piece]:
    """Events of names, one inside the other, with those around them in their paths."""
    around: list[Piece] = []
    for event in sorted(events, key=lambda piece: (piece.start, -piece.end)):
        while around and around[-1].end <= event.start:
            around.pop()
        path = around[-1].path if around else ()
        path = path if event.path in path else (*path, event.path)
        around.append(Piece(event.start, event.end, path))
        yield around[-1]


def coalesced(ordered: Iterable[Piece]) -> list[Piece]:
    """The same time in fewer pieces: neighbours of one path become one."""
    found: list[Piece] = []
    for piece in ordered:
        if found and found[-1].end == piece.start and found[-1].path == piece.path:
            piece = Piece(found.pop().start, piece.end, piece.path)
        found.append(piece)
    return found


def filled(ordered: Sequence[Piece], within: tuple[float, float], path: Path) -> list[Piece]:
    """The pieces inside of some time, cut to it, with `path` wherever there is none."""
    found, now = [], within[0]
    for piece in ordered[bisect.bisect(ordered, within[0], key=lambda piece: piece.end) :]:
        start, end = max(piece.start, within[0]), min(piece.end, within[1])
        if start >= within[1]:
            break
        if start > now:
            found.append(Piece(now, start, path))
        found.append(Piece(start, end, piece.path))
        now = end
    return [*found, Piece(now, within[1], path)] if now < within[1] else found


def overlaps(one: Sequence[Piece], other: Sequence[Piece]) -> Iterator[tuple[float, float, Any, Any]]:
    """(start, end, path of one, path of the other) wherever pieces of both are; each is disjoint and in order."""
    i = j = 0
    while i < len(one) and j < len(other):
        start, end = max(one[i].start, other[j].start), min(one[i].end, other[j].end)
        if start < end:
            yield start, end, one[i].path, other[j].path
        if one[i].end < other[j].end:
            i += 1
        else:
            j += 1
