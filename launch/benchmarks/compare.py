"""Figures of two runs side by side: an earlier file's and this run's, with how many times the old the new is.

Figures belong together by suite, case and chip.  What is measured is found by its name: seconds, bytes and cycles are
better when they are less; rates, shares of the roofline and accuracies when they are more.  Only our own can be worse:
what a peer takes, and so a ratio to it, is printed and not judged.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

Figure = dict[str, Any]
Key = tuple[str, str, str]

LESS = ("seconds", "cpu_seconds", "compile_seconds", "temp_bytes", "cycles")
MORE = ("ours", "peer", "roofline", "accuracy")
TOLD = ("ratio",)  # of two sides; neither more nor less is better


def read(path: pathlib.Path) -> list[Figure]:
    """The figures of a file that `--out` wrote; ValueError names the file and what is wrong with it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: no figures to compare with: {error}") from error
    if not isinstance(found, list) or not found:
        raise ValueError(f"{path}: no figures to compare with: not a list of them")
    for place, figure in enumerate(found):
        if not isinstance(figure, dict) or not isinstance(figure.get("case"), str):
            raise ValueError(f"{path}: no figures to compare with: entry {place} has no case")
    return found


def numbers(figure: Figure) -> dict[str, float]:
    """What was measured, by "name" or "name, side"."""
    found = {}
    for name in (*LESS, *MORE, *TOLD):
        value = figure.get(name)
        for side, number in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(number, int | float):
                found[f"{name}, {side}" if side else name] = float(number)
    return found


def worse_by(name: str, old: float, new: float) -> float | None:
    """How many times worse the new number is, below 1 if it is better; None for what is not ours or cannot be said."""
    kind, _, side = name.partition(", ")
    if kind in TOLD or kind == "peer" or side not in ("", "ours") or old <= 0 or new <= 0:
        return None
    return new / old if kind in LESS else old / new


def lines(old: Sequence[Figure], new: Sequence[Figure], *, most: float = 0.0) -> tuple[list[str], bool]:
    """(lines to print, whether something of ours is over `most` times worse; 0 judges nothing)."""
    suite = str(new[0].get("suite", "")) if new else ""
    before, after = ({_key(figure, suite): figure for figure in figures} for figures in (old, new))
    said, bad = _changes(old, new), False
    for key, figure in after.items():
        if key not in before:
            said.append(f"{_shown(key)}: not in the old file")
            continue
        was, now = numbers(before[key]), numbers(figure)
        for name in now:
            if name not in was:
                continue
            times = worse_by(name, was[name], now[name])
            over = bool(most) and times is not None and times > most
            bad = bad or over
            ratio = f"x {now[name] / was[name]:.3f}" if was[name] else ""
            mark = "  WORSE" if over else ""
            said.append(f"{_shown(key):40s} {name:32s} {was[name]:14.6g} -> {now[name]:14.6g}  {ratio}{mark}")
    said += [f"{_shown(key)}: not measured now" for key in before if key not in after and key[0] == suite]
    return said, bad


def _key(figure: Figure, suite: str) -> Key:
    """Files of before figures had a suite hold those of one."""
    return str(figure.get("suite", suite)), figure["case"], str(figure.get("chip", ""))


def _shown(key: Key) -> str:
    return " ".join(part for part in key if part)


def _changes(old: Sequence[Figure], new: Sequence[Figure]) -> list[str]:
    """On what the two were measured, where that differs."""
    was, now = (_flat(figures[0]) if figures else {} for figures in (old, new))
    found = [f"{name}: {was.get(name, '?')} -> {now.get(name, '?')}" for name in sorted({*was, *now})]
    return [line for line, name in zip(found, sorted({*was, *now}), strict=True) if was.get(name) != now.get(name)]


def _flat(figure: Figure) -> dict[str, str]:
    found: dict[str, str] = {name: str(figure[name]) for name in ("date", "device") if name in figure}
    for name, value in (figure.get("versions") or {}).items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        found |= {f"{name} {part}".strip(): str(version) for part, version in inner}
    return found
