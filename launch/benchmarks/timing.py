"""Medians of sides that take turns, after a check that they agree; and what of a time was compilation."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax.monitoring

Span = tuple[float, float]  # from, to, as time.perf_counter() has it

COMPILING = "/jax/core/compile/"  # what JAX calls its tracing, its lowering and its compilation


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


class Compiling:
    """Spans in which JAX traced or compiled something while this was entered; one may lie within another."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def __enter__(self) -> "Compiling":
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith(COMPILING):
            end = time.perf_counter()
            self.spans.append((end - duration_secs, end))


def covered(spans: Iterable[Span]) -> float:
    """Seconds that lie in at least one span."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
