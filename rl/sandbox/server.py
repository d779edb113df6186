"""The worker: a small program of its own that forks one process per job and ends it, whatever it does.

It is exec'd, never forked from the trainer, so there is nothing of the trainer in it to read; and it forks before the
job is read, so a job never sees another.  Messages on the control socket, JSON, one at a time:

    in   {"layers": [...]} once         out  {"active": [...], "refused": {layer: why}}
    in   {"id", "wall", "cpu", "memory"} and the socket of the job, or two: program and checker
    in   {"stop": id}                   out  {"id", "reason": "ended" | "deadline" | "stopped", "cpu": seconds of each}

It exits when the control socket closes.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from thinkfirst.rl.sandbox import confine, program, syscalls

# Imported before the first job: they cost it nothing, and some could not be imported once the rest is out of sight.
PRELOADED = (
    *("_strptime", "array", "ast", "base64", "bisect", "calendar", "cmath", "collections", "copy"),
    *("ctypes", "dataclasses", "datetime", "decimal", "encodings.idna", "enum", "fractions", "functools"),
    *("hashlib", "heapq", "itertools", "locale", "math", "numbers", "operator", "pprint", "queue"),
    *("random", "re", "statistics", "string", "struct", "textwrap", "threading", "traceback", "typing"),
    *("unicodedata", "uuid", "zlib"),
)
_MAX_MESSAGE = 1 << 16
_MAX_FDS = 100  # the worker never has that many open


def main() -> None:
    """Serves until the control socket, which comes as standard input, closes."""
    control = socket.socket(fileno=os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    wanted = json.loads(control.recv(_MAX_MESSAGE))["layers"]
    for name in PRELOADED:
        importlib.import_module(name)
    host = _Host(control, wanted)
    gc.collect()
    gc.freeze()
    while True:
        data, fds, _, _ = socket.recv_fds(control, _MAX_MESSAGE, 2)
        if not data:
            return
        message = json.loads(data)
        if "stop" not in message:
            host.run(message, fds)


class _Host:
    """The worker's state: what it confines jobs with, and the processes that live."""

    def __init__(self, control: socket.socket, wanted: list[str]) -> None:
        self.control = control
        self.active = ["rlimits"]
        self.refused: dict[str, str] = {}
        self.pid_space: int | None = None
        self.filter = b""
        readable = confine.standard_library()
        if "namespaces" in wanted:
            self._try("namespaces", lambda: self._own_namespaces(readable))
        confine.adopt_orphans()
        if "landlock" in wanted:
            self._try("landlock", lambda: confine.landlock(readable))
        if "seccomp" in wanted:
            self._try("seccomp", self._prove_filter)
        self.woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        control.send(json.dumps({"active": self.active, "refused": self.refused}).encode())

    def run(self, message: dict[str, Any], fds: list[int]) -> None:
        """One job, or a program and its checker, from the first fork to the last wait."""
        links = [end.detach() for end in socket.socketpair()] if len(fds) == 2 else [None]
        started = time.monotonic()
        pids = [self._start(message, fd, link) for fd, link in zip(fds, links, strict=True)]
        for fd in (*fds, *links):
            if fd is not None:
                os.close(fd)
        used: dict[int, float] = {}
        reason = self._wait(pids, used, until=started + message["wall"], job=message["id"])
        self._end(pids, used)
        if reason is None:
            os._exit(0)
        report = {"id": message["id"], "reason": reason, "cpu": [used[pid] for pid in pids]}
        self.control.send(json.dumps(report).encode())

    def _start(self, message: dict[str, Any], job_fd: int, link_fd: int | None) -> int:
        server = os.getpid()
        pid = os.fork() if self.pid_space is None else confine.fork_into_new_pid_space(self.pid_space)
        if pid:
            return pid
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            job_fd, link_fd = _keep_only(job_fd, link_fd)
            os.setsid()
            confine.limit(cpu_seconds=message["cpu"], memory_bytes=message["memory"])
            confine.drop_privileges()
            if self.pid_space is None:
                confine.die_with(server)
            if self.filter:
                syscalls.install(self.filter)
            program.run(job_fd, link_fd)  # fails closed: after an exception above, the job is not even read
        finally:
            os._exit(0)

    def _wait(self, pids: list[int], used: dict[int, float], *, until: float, job: int) -> str | None:
        """Why the job is over: the last of `pids` ended, or time, or it was told to; None when nobody listens."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.woken, select.POLLIN)
        while True:
            self._reap(pids, used)
            if pids[-1] in used:
                return "ended"
            left = until - time.monotonic()
            if left <= 0:
                return "deadline"
            for fd, _ in poll.poll(left * 1000 + 1):
                if fd == self.woken:
                    os.read(fd, 64)
                    continue
                data = self.control.recv(_MAX_MESSAGE)
                if not data:
                    return None
                if json.loads(data).get("stop") == job:
                    return "stopped"

    def _reap(self, pids: list[int], used: dict[int, float]) -> None:
        for pid in pids:
            if pid not in used:
                ended, _, usage = os.wait4(pid, os.WNOHANG)
                if ended:
                    used[pid] = usage.ru_utime + usage.ru_stime

    def _end(self, pids: list[int], used: dict[int, float]) -> None:
        """Kills what lives of the job and all it started; returns when the last of it is gone."""
        for pid in pids:
            if pid not in used:
                os.kill(pid, signal.SIGKILL)
                _, _, usage = os.wait4(pid, 0)
                used[pid] = usage.ru_utime + usage.ru_stime
        if not self.filter and self.pid_space is None:
            while orphans := _children(os.getpid()):
                for pid in orphans:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)

    def _try(self, layer: str, take: Callable[[], object]) -> None:
        try:
            take()
        except OSError as error:
            self.refused[layer] = str(error)
            if layer == "namespaces":  # half of it may be done: whoever started this starts another without
                self.control.send(json.dumps({"active": self.active, "refused": self.refused}).encode())
                os._exit(0)
        else:
            self.active.append(layer)

    def _own_namespaces(self, readable: list[str]) -> None:
        confine.enter_namespaces()
        inner = os.fork()
        if inner:
            self.control.close()
            _, status = os.waitpid(inner, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        confine.die_with(None)
        self.pid_space = confine.own_pid_space()
        confine.new_root(readable)

    def _prove_filter(self) -> None:
        """The filter is kept if a process can live under it.  With no other bound on what is read, it opens no file."""
        code = syscalls.program(reads_files="landlock" in self.active or "namespaces" in self.active)
        pid = os.fork()
        if not pid:
            try:
                confine.drop_privileges()
                syscalls.install(code)
                os._exit(0)
            except OSError as error:
                os._exit(error.errno or 1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            raise OSError(status, f"seccomp: {os.strerror(status) if status > 0 else f'killed by {-status}'}")
        self.filter = code


def _keep_only(job_fd: int, link_fd: int | None) -> tuple[int, int | None]:
    """The two descriptors as 3 and 4; 0, 1 and 2 lead nowhere and all others are closed."""
    high = [os.dup2(fd, _MAX_FDS + index) for index, fd in enumerate((job_fd, link_fd)) if fd is not None]
    os.dup2(0, 1)
    os.dup2(0, 2)
    os.closerange(3, _MAX_FDS)
    low = [os.dup2(fd, 3 + index) for index, fd in enumerate(high)]
    os.closerange(_MAX_FDS, _MAX_FDS + 2)
    return low[0], low[1] if len(low) > 1 else None


def _children(parent: int) -> list[int]:
    """Processes whose parent is `parent`: what escaped from its group comes to the worker when its parent ends."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(name))
    return found
