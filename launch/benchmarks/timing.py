"""Medians of sides that take turns, after a check that they agree."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def require_small(gaps: dict[str, float], most: float) -> None:
    """ValueError if a gap is over `most` or is no number."""
    for name, gap in gaps.items():
        if not gap <= most:
            raise ValueError(f"{name}: {gap} is over {most}; nothing is timed")


def alternate(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each side, all sides run in turn after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
