"""What runs that learn come to: means over seeds, seconds to an accuracy that all reach, and the picture of both."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Point = dict[str, Any]  # of a curve: step, accuracy, seconds, ..., see learning.py
Run = dict[str, Any]  # versions, points
Runs = dict[str, dict[int, Run]]  # by side and seed

COLORS = {"ours": "#0072B2", "tunix": "#D55E00"}
MEANS = ("accuracy", "accuracy_strict", "format_rate", "seconds", "compile_seconds", "cpu_seconds", "tokens")


def mean(runs: Sequence[Run]) -> list[Point]:
    """The points of several seeds as one curve: means at every step; ValueError if they were looked at otherwise."""
    steps = [[point["step"] for point in run["points"]] for run in runs]
    if any(other != steps[0] for other in steps):
        raise ValueError(f"runs with points after different steps have no mean: {steps}")
    columns = zip(*(run["points"] for run in runs), strict=True)
    return [
        {**points[0], "reward": None, **{name: float(np.mean([point[name] for point in points])) for name in MEANS}}
        for points in columns
    ]


def reached(points: Sequence[Point], level: float, *, clock: str = "seconds") -> float | None:
    """What the clock says where the curve first has `level`, on straight lines between its points; None: never."""
    before: Point | None = None
    for point in points:
        if point["accuracy"] >= level:
            if before is None:
                return float(point[clock])
            share = (level - before["accuracy"]) / (point["accuracy"] - before["accuracy"])
            return float(before[clock] + share * (point[clock] - before[clock]))
        before = point
    return None


def figure(case: str, runs: Runs) -> dict[str, Any]:
    """The runs, and what is said of them: by side, means over seeds."""
    curves = {side: mean(list(of.values())) for side, of in runs.items() if of}
    last = {side: points[-1] for side, points in curves.items()}
    level = min(point["accuracy"] for point in last.values())
    seconds = {side: reached(points, level) for side, points in curves.items()}
    ours, theirs = seconds.get("ours"), seconds.get("tunix")
    ratio = theirs / ours if ours and theirs else None
    return {
        "case": case,
        "seeds": sorted(next(iter(runs.values()))),
        "steps": next(iter(last.values()))["step"],
        "completions": next(iter(last.values()))["completions"],
        "accuracy_before": {side: points[0]["accuracy"] for side, points in curves.items()},
        "accuracy": {side: point["accuracy"] for side, point in last.items()},
        "seconds": {side: point["seconds"] for side, point in last.items()},
        "compile_seconds": {side: point["compile_seconds"] for side, point in last.items()},
        "cpu_seconds": {side: point["cpu_seconds"] for side, point in last.items()},
        "tokens": {side: point["tokens"] for side, point in last.items()},
        "reached": {"accuracy": level, "seconds": seconds, "ratio": ratio},
        "runs": runs,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The figure as lines of text."""
    seeds = ", ".join(map(str, found["seeds"]))
    said = [f"{found['case']}: {found['steps']} steps, {found['completions']} completions, means of seeds {seeds}"]
    for side, accuracy in found["accuracy"].items():
        said.append(
            f"  {side:6s} accuracy {found['accuracy_before'][side]:.3f} -> {accuracy:.3f}  "
            f"{found['seconds'][side]:8.1f} s  {found['compile_seconds'][side]:7.1f} s of compilation  "
            f"{found['cpu_seconds'][side]:8.1f} CPU s  {found['tokens'][side]:.0f} tokens"
        )
    level, seconds = found["reached"]["accuracy"], found["reached"]["seconds"]
    times = ", ".join(f"{side} {spent:.1f} s" for side, spent in seconds.items() if spent is not None)
    ratio = f"  ratio {found['reached']['ratio']:.2f}" if found["reached"]["ratio"] else ""
    return [*said, f"  accuracy {level:.3f} after, compilation left out: {times}{ratio}"]


def draw(runs: Runs, path: pathlib.Path) -> None:
    """Accuracy against seconds, without compilation and with it: each seed thin, their mean bold."""
    picture = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    left, right = picture.subplots(1, 2, sharey=True)
    for axes, clocks in ((left, ("seconds",)), (right, ("seconds", "compile_seconds"))):
        for side, of in runs.items():
            for run in of.values():
                _curve(axes, run["points"], clocks, COLORS[side], width=0.8, alpha=0.45)
            if of:
                _curve(axes, mean(list(of.values())), clocks, COLORS[side], width=2.5, label=side)
        axes.grid(visible=True, alpha=0.3)
        axes.set_xlabel("seconds of training" + (", compilation included" if len(clocks) > 1 else ""))
    left.set_ylabel("held-out accuracy (sampled)")
    left.legend(loc="lower right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(picture).print_figure(path)


def _curve(
    axes: Axes,
    points: Sequence[Point],
    clocks: Sequence[str],
    color: str,
    *,
    width: float,
    alpha: float = 1.0,
    label: str | None = None,
) -> None:
    spent = [sum(point[clock] for clock in clocks) for point in points]
    accuracy = [point["accuracy"] for point in points]
    axes.plot(spent, accuracy, color=color, linewidth=width, alpha=alpha, label=label)
