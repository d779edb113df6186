"""Values out of a JSON object, each of the type and within the bounds that its reader can use.

What is wrong raises ValueError with the key and the value; `where` leads to the object: "rope_scaling.".
"""

import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

Raw = Mapping[str, Any]

_MAX_NUMBER = 1e12  # also keeps out the Infinity that Python's JSON knows


def read_object(path: pathlib.Path) -> Raw:
    """The object that a JSON file holds."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except ValueError as error:  # not UTF-8, or a number of thousands of digits
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: not a JSON object")
    return raw


def get(raw: Raw, key: str, where: str = "") -> Any:
    """Whatever stands there, null included."""
    if key not in raw:
        raise ValueError(f"missing key {where + key!r}")
    return raw[key]


def mapping(raw: Raw, key: str, where: str = "") -> Raw:
    """An object."""
    value = get(raw, key, where)
    if not isinstance(value, dict):
        raise ValueError(f"{where}{key} {value!r} is not an object")
    return value


def one_of(raw: Raw, key: str, allowed: Collection[str], where: str = "") -> str:
    """One of the strings that are `allowed`."""
    value = get(raw, key, where)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{where}{key} {value!r} is not {' or '.join(allowed)}")
    return value


def whole(raw: Raw, key: str, *, most: int) -> int:
    """A whole number from 1 to `most`; neither true nor 1.0 is one."""
    value = get(raw, key)
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{key} {value!r} is not a whole number from 1 to {most}")
    return value


def positive(raw: Raw, key: str, where: str = "") -> float:
    """A number above 0, written with or without a point."""
    value = get(raw, key, where)
    if type(value) not in (int, float) or not 0 < value <= _MAX_NUMBER:
        raise ValueError(f"{where}{key} {value!r} is not a positive number")
    return float(value)
