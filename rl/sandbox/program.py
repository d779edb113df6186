"""What runs inside the sandbox, in the process that holds the untrusted program.

Nothing here is trusted after the program began: it may rewrite this module.  It can only send values, and what a right
value is, is not known here.  One line per answer: [index, "value", tagged] or [index, "error", name of the exception].

The job comes after the process was confined: a 8-byte length and JSON with "role" and
  "calls"   code, setup, steps: the value of each expression
  "serve"   code: answers calls of its functions from the peer
  "check"   setup, steps, names: runs trusted tests; each of `names` is a function that asks the peer
"""

import builtins
import importlib
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from thinkfirst.rl.sandbox import values

NAME = "solution"  # the module the program runs as, so `if __name__ == "__main__"` is not taken
MAX_LINE = 1 << 18
_CHUNK = 1 << 16
_TRUE = values.dumps(value=True)

# Other exceptions of a peer arrive as RuntimeError.  StopIteration would end a `map` of the tests before its time.
_PASSED_ON = (
    *("ArithmeticError", "AttributeError", "IndexError", "KeyError", "LookupError", "NotImplementedError"),
    *("OverflowError", "TypeError", "ValueError", "ZeroDivisionError"),
)


def run(job_fd: int, peer_fd: int | None) -> None:
    """Answers the job that arrives at `job_fd`."""
    lines = _Lines(job_fd)
    job = json.loads(lines.take(int.from_bytes(lines.take(8), "big")))
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module
    scope = module.__dict__
    if job["role"] == "check":
        assert peer_fd is not None
        peer = _Lines(peer_fd)
        scope.update({name: _remote(peer, name) for name in job["names"]})
        scope.update({name: importlib.import_module(name) for name in job["modules"]})
    error = _execute(job["code"], scope)
    if job["role"] == "serve":
        assert peer_fd is not None
        return _serve(_Lines(peer_fd), scope, error)
    for source in job["setup"]:
        error = error or _execute(source, scope)
    step = _passes if job["role"] == "check" else _value
    for index, source in enumerate(job["steps"]):
        answer = ["error", error] if error else step(source, scope)
        _write(job_fd, json.dumps([index, *answer]))
    return None


def _value(source: str, scope: dict[str, Any]) -> list:
    try:
        return ["value", values.dumps(eval(compile(source, "<call>", "eval", dont_inherit=True), scope))]
    except BaseException as error:  # noqa: BLE001 - whatever it raises is its answer
        return ["error", _name(error)]


def _passes(source: str, scope: dict[str, Any]) -> list:
    error = _execute(source, scope)
    return ["error", error] if error else ["value", _TRUE]


def _execute(source: str, scope: dict[str, Any]) -> str:
    """"" or the name of the exception that ended the source."""
    try:
        exec(compile(source, f"<{NAME}>", "exec", dont_inherit=True), scope)
    except BaseException as error:  # noqa: BLE001 - whatever it raises is its answer
        return _name(error)
    return ""


def _name(error: BaseException) -> str:
    return type.__dict__["__name__"].__get__(type(error))  # not what the class says of itself


def _serve(peer: "_Lines", scope: dict[str, Any], error: str) -> None:
    while request := peer.line():
        name, arguments, named = json.loads(request)
        answer = ["error", error]
        if not error:
            try:
                if name not in scope:
                    raise NameError(name)
                result = scope[name](*values.loads(arguments), **values.loads(named))
                answer = ["value", values.dumps(result)]
            except BaseException as raised:  # noqa: BLE001 - likewise
                answer = ["error", _name(raised)]
        _write(peer.fd, json.dumps(answer))


def _remote(peer: "_Lines", name: str) -> Callable[..., Any]:
    def ask(*arguments: object, **named: object) -> Any:
        _write(peer.fd, json.dumps([name, values.dumps(list(arguments)), values.dumps(named)]))
        answer = peer.line()
        if not answer:
            raise RuntimeError(f"{name} ended its process")
        kind, content = json.loads(answer)
        if kind == "value":
            return values.loads(content)
        raise (getattr(builtins, content) if content in _PASSED_ON else RuntimeError)(content)

    ask.__name__ = name
    return ask


def _write(fd: int, line: str) -> None:
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]


class _Lines:
    """What arrives at a descriptor, by length or by line."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._rest = b""

    def take(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._fill()
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def line(self) -> bytes:
        """The next line, or b"" at the end."""
        while b"\n" not in self._rest:
            if len(self._rest) > MAX_LINE:
                raise OverflowError("the answer is too long")
            try:
                self._fill()
            except EOFError:
                return b""
        taken, _, self._rest = self._rest.partition(b"\n")
        return taken

    def _fill(self) -> None:
        chunk = os.read(self.fd, _CHUNK)
        if not chunk:
            raise EOFError
        self._rest += chunk
