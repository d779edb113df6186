"""The process in which a reward of the user's own runs (see `user`).

It reads one pickled call after another from standard input and writes a line of JSON for each: {"values": [...]} or
{"error": ...}.  What the function prints goes to standard error.  An exception of its own ends the process, with its
traceback on standard error and its last line in the answer.
"""

import importlib
import inspect
import json
import math
import numbers
import os
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any, BinaryIO


def serve(name: str) -> int:
    """Exit status, once there are no more calls.  Standard output is for the answers, so that no print gets there."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return _answer_calls(name, sys.stdin.buffer, answers)


def load(name: str) -> Callable[..., Any]:
    """The function `module:function` names; ValueError when it cannot be had, or cannot be called as a reward is."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError("it must be written module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"module {module_name} cannot be imported: {error}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"module {module_name} has no {attribute}")
    function = getattr(module, attribute)
    if not callable(function):
        raise ValueError(f"it is a {type(function).__name__}, not a function")
    try:
        inspect.signature(function).bind([], [], step=1, phase="")
    except TypeError as error:
        raise ValueError(
            f"its signature is {inspect.signature(function)}, but it is called as"
            f" f(completions, problems, step=..., phase=...): {error}"
        ) from error
    return function


def checked(found: Any, count: int) -> list[float | None]:
    """One finite number or None for each of `count` rows; ValueError for anything else a function may give back."""
    if isinstance(found, str | bytes | dict) or not hasattr(found, "__iter__"):
        raise ValueError(f"it gave {_shown(found)}, not a list of {count} numbers or None")
    values = list(found)
    if len(values) != count:
        raise ValueError(f"it gave {len(values)} values for {count} completions")
    return [_number(value, row) for row, value in enumerate(values)]


def _number(value: Any, row: int) -> float | None:
    if value is None:
        return None
    if not isinstance(value, numbers.Real):
        raise ValueError(f"completion {row}: it gave {_shown(value)}, a {type(value).__name__}, not a number or None")
    if not math.isfinite(value):
        raise ValueError(f"completion {row}: it gave {float(value)}, which is not finite")
    return float(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _answer_calls(name: str, calls: BinaryIO, answers: BinaryIO) -> int:
    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()

    def report(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        answer({"error": f"it raised {kind.__name__}: {error}"})
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = report
    try:
        function = load(name)
    except ValueError as error:
        answer({"error": str(error)})
        return 1
    importlib.import_module("thinkfirst.rl.batch")  # what a call brings: its import is no part of the first one's time
    answer({"values": []})
    while header := calls.read(8):
        completions, problems, step, phase = pickle.loads(calls.read(int.from_bytes(header, "big")))
        found = function(completions, problems, step=step, phase=phase)
        try:
            answer({"values": checked(found, len(completions))})
        except ValueError as error:
            answer({"error": str(error)})
            return 1
    return 0
