"""Frozen dataclasses as configuration: `a.b=c` overrides with typed errors, a JSON dump and a hash.

A tuple of dataclasses that have a `name` is addressed by that name: `stages.grpo.steps=10`.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def override(config: T, assignments: Sequence[str]) -> T:
    """`config` with every "a.b=value" applied in order; ValueError names an unknown key or an ill-typed value."""
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: expected key=value")
        config = _replaced(config, key.split("."), value, key)
    return config


def dump(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def restored(like: T, dumped: Any, key: str = "") -> T:
    """A configuration built like `like` with the values that `dump` wrote; ValueError names what does not fit."""
    if dataclasses.is_dataclass(like) and isinstance(dumped, dict):
        names = [field.name for field in dataclasses.fields(like)]
        if unlike := sorted(dumped.keys() ^ set(names)):
            raise ValueError(f"{key or 'configuration'}: the settings {', '.join(unlike)} are not on both sides")
        values = {name: restored(getattr(like, name), dumped[name], f"{key}.{name}".lstrip(".")) for name in names}
        return dataclasses.replace(like, **values)  # type: ignore[type-var]
    if isinstance(like, tuple) and isinstance(dumped, list):
        if like and dataclasses.is_dataclass(like[0]):
            if len(like) != len(dumped):
                raise ValueError(f"{key}: {len(dumped)} entries, expected {len(like)}")
            pairs = zip(like, dumped, strict=True)
            return tuple(restored(item, value, f"{key}.{place}") for place, (item, value) in enumerate(pairs))  # type: ignore[return-value]
        return tuple(dumped)  # type: ignore[return-value]
    whole_for_float = isinstance(like, float) and type(dumped) is int
    if type(dumped) is not type(like) and not whole_for_float:
        raise ValueError(f"{key}: {dumped!r} is no {type(like).__name__}")
    return type(like)(dumped)  # type: ignore[call-arg]


def digest(config: Any) -> str:
    """Sixteen hexadecimal digits that change whenever a setting does."""
    return hashlib.sha256(json.dumps(dump(config), sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """ "key: old -> new" of every leaf in which two dumped configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(place), a, b) for place, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [f"{prefix}: {old!r} -> {new!r}"]
    return [line for name, a, b in pairs for line in differences(a, b, f"{prefix}.{name}" if prefix else name)]


def _replaced(node: Any, path: list[str], value: str, key: str) -> Any:
    """`node` with the leaf at `path` set to `value`."""
    name, rest = path[0], path[1:]
    if isinstance(node, tuple):
        places = {getattr(item, "name", str(place)): place for place, item in enumerate(node)}
        if name not in places:
            raise ValueError(f"--set {key}: no {name!r} here; there is: {', '.join(places) or 'nothing'}")
        if not rest:
            raise ValueError(f"--set {key}: {name!r} is a group of settings, not a value")
        place = places[name]
        return (*node[:place], _replaced(node[place], rest, value, key), *node[place + 1 :])
    known = {field.name: field for field in dataclasses.fields(node)}
    if name not in known:
        raise ValueError(f"--set {key}: no setting {name!r}; there is: {', '.join(known)}")
    current = getattr(node, name)
    if rest:
        if not dataclasses.is_dataclass(current) and not isinstance(current, tuple):
            raise ValueError(f"--set {key}: {name!r} is a value and has no {rest[0]!r}")
        return dataclasses.replace(node, **{name: _replaced(current, rest, value, key)})
    kind = typing.get_type_hints(type(node))[name]
    try:
        return dataclasses.replace(node, **{name: _parsed(value, kind, key)})
    except TypeError as error:
        raise ValueError(f"--set {key}={value}: {error}") from error


def _parsed(value: str, kind: Any, key: str) -> Any:
    """`value` as the annotated type of its field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    wrong = ValueError(f"--set {key}={value}: expected {getattr(kind, '__name__', kind)}")
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"--set {key}={value}: expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple and arguments[1:] == (...,) and arguments[0] in (str, int, float):
        return tuple(_parsed(part, arguments[0], key) for part in value.split(",") if part)
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise wrong
        return value.lower() == "true"
    if kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            raise wrong from None
    if kind is str:
        return value
    if isinstance(kind, types.UnionType) or dataclasses.is_dataclass(kind) or origin is tuple:
        raise ValueError(f"--set {key}: this is a group of settings; set one of its parts")
    raise wrong
