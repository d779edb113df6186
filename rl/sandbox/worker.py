"""This side of a worker: starts the server (server.py), hands it one job at a time, and reads what comes back.

The server is exec'd with nothing but the standard library and this folder on its path.  Nothing is forked from this
process, so it may be started before or after JAX.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from thinkfirst.rl.sandbox import protocol, values

_BOOT = """
import sys, types
for name, path in (("thinkfirst", []), ("thinkfirst.rl", []), ("thinkfirst.rl.sandbox", [sys.argv[1]])):
    module = types.ModuleType(name)
    module.__path__ = path
    sys.modules[name] = module
from thinkfirst.rl.sandbox import server
server.main()
"""
_GRACE_SECONDS = 20.0  # a worker on a crowded machine is late, not lost
_MAX_MESSAGE = 1 << 16
_CHUNK = 1 << 16


class Worker:
    """A server process, the socket to it, and the layers it has."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        self._layers = layers
        self._jobs = 0
        self.start()

    def start(self) -> None:
        """Starts the process; without namespaces where the host refuses them, as half of them is of no use."""
        hello = self._launch(self._layers)
        if "namespaces" in hello["refused"]:
            self.close()
            why = {"namespaces": hello["refused"]["namespaces"]}
            hello = self._launch(tuple(layer for layer in self._layers if layer != "namespaces"))
            hello["refused"].update(why)
        self.active, self.refused = hello["active"], hello["refused"]

    def hang_up(self) -> None:
        """The worker ends by itself, and whoever waits for it here learns so."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Returns when the process is gone."""
        self._control.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, asked: protocol.Job | protocol.Check, limits: protocol.Limits) -> protocol.Outcome:
        """The outcome of one job; "lost" when the worker is of no more use."""
        started = time.monotonic()
        expected = len(asked.calls if isinstance(asked, protocol.Job) else asked.tests)
        try:
            status, found = self._converse(_messages(asked), expected, limits)
        except (OSError, ValueError, EOFError):
            status, found = "lost", {}
        results = tuple(found.get(index, protocol.Failed(status)) for index in range(expected))
        return protocol.Outcome(status, results, time.monotonic() - started)

    def _launch(self, layers: tuple[str, ...]) -> dict[str, Any]:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        folder = str(pathlib.Path(__file__).parent)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", _BOOT, folder],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                # Sets of text have one order, so a program has one outcome; some interpreters start by that path only.
                env={"PYTHONHASHSEED": "0", "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")},
                cwd="/",
                start_new_session=True,
            )
        self._control.settimeout(_GRACE_SECONDS * 3)
        self._control.send(json.dumps({"layers": layers}).encode())
        hello = self._control.recv(_MAX_MESSAGE)
        if not hello:
            raise RuntimeError("sandbox: the worker ended before it was ready; its reason stands above")
        return json.loads(hello)

    def _converse(self, messages: list[bytes], expected: int, limits: protocol.Limits) -> tuple[str, dict[int, Any]]:
        self._jobs += 1
        until = time.monotonic() + limits.wall_seconds + _GRACE_SECONDS
        ours, theirs = zip(*(socket.socketpair() for _ in messages), strict=True)
        try:
            header = {
                "id": self._jobs,
                "wall": limits.wall_seconds,
                "cpu": limits.cpu_seconds,
                "memory": limits.memory_bytes,
            }
            socket.send_fds(self._control, [json.dumps(header).encode()], [end.fileno() for end in theirs])
            for end in theirs:
                end.close()
            lines, flooded = _exchange(ours, messages, expected, until=until, cap=limits.output_bytes)
            self._control.settimeout(_GRACE_SECONDS)
            self._control.send(json.dumps({"stop": self._jobs}).encode())
            report = json.loads(self._control.recv(_MAX_MESSAGE))
        finally:
            for end in (*ours, *theirs):
                end.close()
        if report["id"] != self._jobs:
            raise ValueError(f"sandbox: a report about job {report['id']} in place of {self._jobs}")
        found = _answers(lines, expected)
        if len(found) == expected:
            return "done", found
        if flooded:
            return "output", found
        if report["reason"] == "deadline":
            return "deadline", found
        return "cpu" if max(report["cpu"]) >= limits.cpu_seconds - 0.1 else "crashed", found


def _messages(asked: protocol.Job | protocol.Check) -> list[bytes]:
    """What each process of the job is told, the one that answers last."""
    if isinstance(asked, protocol.Job):
        told: list[dict[str, Any]] = [{"role": "calls", "code": asked.code, "setup": asked.setup, "steps": asked.calls}]
    else:
        check = {"role": "check", "code": "", "setup": asked.setup, "steps": asked.tests}
        check |= {"names": asked.names, "modules": asked.modules}
        told = [{"role": "serve", "code": asked.code}, check]
    texts = [json.dumps(message).encode() for message in told]
    return [len(text).to_bytes(8, "big") + text for text in texts]


def _exchange(
    ends: Sequence[socket.socket], messages: list[bytes], expected: int, *, until: float, cap: int
) -> tuple[list[bytes], bool]:
    """Lines of the last end, until there are enough, no more come, or `cap` bytes were exceeded (then True)."""
    for end, message in zip(ends, messages, strict=True):
        end.settimeout(max(0.001, until - time.monotonic()))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ended early: its lines, if any, say more
            end.sendall(message)
    data = b""
    while data.count(b"\n") < expected and len(data) <= cap:
        ends[-1].settimeout(max(0.001, until - time.monotonic()))
        try:
            chunk = ends[-1].recv(_CHUNK)
        except ConnectionResetError:
            break
        if not chunk:
            break
        data += chunk
    return data[:cap].split(b"\n")[:-1], len(data) > cap


def _answers(lines: list[bytes], expected: int) -> dict[int, Any]:
    """The answers that can be read, the first to each question; whatever else a program wrote is no answer."""
    found: dict[int, Any] = {}
    for line in lines:
        try:
            index, kind, content = json.loads(line)
            if type(index) is not int or not 0 <= index < expected or index in found or type(content) is not str:
                continue
            found[index] = values.loads(content) if kind == "value" else protocol.Failed(content[:100])
        except (ValueError, RecursionError, TypeError):
            continue
    return found
