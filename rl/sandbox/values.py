"""Plain values as text that keeps their exact types: 1, True and 1.0 are three things, and so are 0.0 and -0.0.

Every value is a JSON list [tag, content].  Numbers are hexadecimal: exact, and free of the limit on decimal digits.
What is read back is made of None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, deque and
range, never of an instance of a class that the writer could define, so comparing it runs no code of the writer's.

Runs on both sides of the sandbox: it imports the standard library only.
"""

import collections
import json
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 40

# Types whose equality with a plain dict is that of their items.
_DICTS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_LISTED: dict[str, type] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
}
_TAG_OF = {kind: tag for tag, kind in _LISTED.items()}


class UnplainError(ValueError):
    """A value that has no exact text, or a text that stands for no value."""


def dumps(value: object) -> str:
    """ASCII text without a newline that stands for `value` alone."""
    return json.dumps(_tagged(value, MAX_DEPTH), separators=(",", ":"))


def loads(text: str) -> Any:
    """The value a text stands for; UnplainError for any other text, however it was made."""
    try:
        return _untagged(json.loads(text), MAX_DEPTH)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UnplainError(f"no value: {type(error).__name__}") from error


def _tagged(value: Any, depth: int) -> list:
    if depth == 0:
        raise UnplainError(f"nested more than {MAX_DEPTH} deep, or within itself")
    kind = type(value)
    if value is None:
        return ["none", ""]
    if kind is bool or kind is str:
        return [kind.__name__, value]
    if kind is int:
        return ["int", format(value, "x")]
    if kind is float:
        return ["float", value.hex()]
    if kind is complex:
        return ["complex", [value.real.hex(), value.imag.hex()]]
    if kind is bytes:
        return ["bytes", value.hex()]
    if kind is range:
        return ["range", [format(bound, "x") for bound in (value.start, value.stop, value.step)]]
    if kind in _TAG_OF:
        return [_TAG_OF[kind], [_tagged(item, depth - 1) for item in value]]
    if kind in _DICTS:
        return ["dict", [[_tagged(key, depth - 1), _tagged(item, depth - 1)] for key, item in value.items()]]
    raise UnplainError(f"a {kind.__name__} is no plain value")


def _complex(real: str, imaginary: str) -> complex:
    return complex(float.fromhex(real), float.fromhex(imaginary))


_READERS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "none": (str, lambda content: None),
    "bool": (bool, lambda content: content),
    "str": (str, lambda content: content),
    "int": (str, lambda content: int(content, 16)),
    "float": (str, float.fromhex),
    "complex": (list, lambda content: _complex(*content)),
    "bytes": (str, bytes.fromhex),
    "range": (list, lambda content: range(*(int(bound, 16) for bound in content))),
}


def _untagged(tagged: Any, depth: int) -> Any:
    if depth == 0:
        raise UnplainError(f"nested more than {MAX_DEPTH} deep")
    tag, content = tagged
    if tag in _READERS:
        kind, read = _READERS[tag]
        if type(content) is not kind:
            raise UnplainError(f"a {tag} is written as {kind.__name__}")
        return read(content)
    if type(content) is not list:
        raise UnplainError("the items are no list")
    if tag == "dict":
        return {_untagged(key, depth - 1): _untagged(item, depth - 1) for key, item in content}
    if tag in _LISTED:
        return _LISTED[tag]([_untagged(item, depth - 1) for item in content])
    raise UnplainError("an unknown kind of value")
