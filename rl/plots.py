"""Learning curves of a run as one picture: a grid of small panels, drawn from the rows of `metrics.jsonl`.

GRPO panels run over the step within the stage and carry the curriculum's phases as shaded bands; SFT panels carry the
names of their stages.  Stages of one kind stand end to end.  A panel without a finite value is left out, a missing or
null value leaves a gap, and a lone point between gaps is drawn as a dot.  No pyplot, no window, no global state.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

Row = Mapping[str, Any]

# Okabe and Ito's palette: told apart with every common kind of colour blindness.  One meaning keeps one colour.
_INK, _GREY, _BLUE, _GREEN, _ORANGE = "#222222", "#777777", "#0072B2", "#009E73", "#E69F00"
_PINK, _SKY, _RED = "#CC79A7", "#56B4E9", "#D55E00"
_PART_COLORS = {"trace": _BLUE, "correctness": _GREEN, "confidence": _ORANGE, "verbosity": _PINK}
_OTHER_COLORS = (_RED, _GREY, "#8C6D31", "#5E4FA2")
_ALSO = {"SFT": ("DISTILL",)}  # kinds of stages on the track of another
_BAND_COLORS = ("#F1F4F8", "#E3EAF2", "#F6F1E7", "#EAF3EC")


class Line(NamedTuple):
    """One curve: the key in the rows, its name in the legend and its colour."""

    key: str
    label: str
    color: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """One small plot.  `between` are two keys whose gap is shaded; `held_out` adds the evaluations."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    percent: bool = False
    between: tuple[str, ...] = ()
    held_out: bool = False


@dataclasses.dataclass(frozen=True)
class Track:
    """The rows of one kind of stage laid end to end: their x, one slice per stage, and labelled bands (from, to)."""

    name: str
    rows: tuple[Row, ...]
    x: np.ndarray
    stages: tuple[slice, ...]
    bands: tuple[tuple[float, float, str], ...]


def learning_curves(rows: Sequence[Row], evaluations: Sequence[Row], path: str | Path) -> None:
    """Writes the picture at `path`, whole or not at all; with no rows it says that nothing was trained."""
    grpo, sft = track("GRPO", rows), track("SFT", rows)
    jobs = [(grpo, panel) for panel in _grpo_panels(grpo.rows)] + [(sft, panel) for panel in _SFT_PANELS]
    jobs = [job for job in jobs if any(np.isfinite(values(job[0].rows, line.key)).any() for line in job[1].lines)]
    num_rows = math.ceil(len(jobs) / 3)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=(13.35, 2.25 * num_rows + 0.25), dpi=120, layout=layout)
    for position, (lane, panel) in enumerate(jobs):
        _draw(figure.add_subplot(num_rows, 3, position + 1), lane, panel, evaluations)
    note = "Faint: single steps.  Bold: centred moving average.  Shaded bands: phases of the curriculum, or stages."
    figure.supxlabel(note if jobs else "No training steps were recorded.", fontsize=8, color="#666666")
    _save(figure, Path(path))


def track(name: str, rows: Iterable[Row]) -> Track:
    """The rows whose kind is `name`, by stage and step; of a step that was run twice (a resume) the last row counts."""
    by_stage: dict[str, dict[int, Row]] = {}
    for row in rows:
        if str(row.get("kind", "")).upper() in (name, *_ALSO.get(name, ())):
            steps = by_stage.setdefault(str(row.get("stage", "")), {})
            steps[int(row.get("stage_step") or row.get("step") or len(steps) + 1)] = row
    kept, x, labels, stages = list[Row](), list[int](), list[str](), list[slice]()
    for stage, steps in by_stage.items():
        stages.append(slice(len(kept), len(kept) + len(steps)))
        offset = max(x, default=0)
        for step, row in sorted(steps.items()):
            kept.append(row)
            x.append(offset + step)
            labels.append(" ".join([stage] * (len(by_stage) > 1) + [str(row.get("phase") or "")]).strip())
    return Track(name, tuple(kept), np.asarray(x, float), tuple(stages), tuple(_bands(x, labels)))


def values(rows: Sequence[Row], key: str) -> np.ndarray:
    """`key` of every row as floats; NaN where it is missing, null, infinite or not a number."""
    found = (row.get(key) for row in rows)
    floats = np.array([value if isinstance(value, int | float) else math.nan for value in found], float)
    return np.where(np.isfinite(floats), floats, math.nan)


def smoothed(y: np.ndarray) -> np.ndarray:
    """Centred moving average over about a twentieth of the points; gaps stay gaps and weigh nothing."""
    half = min(len(y) // 40, 15)
    finite = np.isfinite(y)
    kernel = np.ones(2 * half + 1)
    total = np.convolve(np.where(finite, y, 0.0), kernel)[half : half + len(y)]
    count = np.convolve(finite.astype(float), kernel)[half : half + len(y)]
    return np.where(finite, total / np.maximum(count, 1), math.nan)


_SFT_PANELS = (
    Panel("SFT loss", "nats per token", (Line("loss", "loss", _BLUE),)),
    Panel("SFT gradient norm", "L2 norm", (Line("grad_norm", "gradient norm", _RED),)),
    Panel("SFT speed", "tokens per second", (Line("tokens_per_second", "tokens per second", _GREEN),)),
)


def _grpo_panels(rows: Sequence[Row]) -> tuple[Panel, ...]:
    reward = (Line("reward", "reward", _INK), *_parts(rows, "rewards/", "/mean"))
    training = Line("rewards/correctness/mean", "training samples", _GREEN)
    held_out = Line("eval/accuracy", "held out, in training", _INK)
    right, cut = Line("rewards/format/mean", "right format", _BLUE), Line("completions/clipped_ratio", "cut off", _RED)
    equal = Line("frac_reward_zero_std", "groups with equal rewards", _ORANGE)
    length = Line("completions/mean_length", "mean (shaded: shortest to longest)", _INK)
    gap = Line("sampling/sampling_logp_difference/mean", "gap", _PINK)
    return (
        Panel("Reward and its parts", "score", reward),
        Panel("Format rate", "share", (right, cut, equal), percent=True),
        Panel("Accuracy", "correct", (training, held_out), percent=True, held_out=True),
        Panel("KL from the reference", "nats per token", (Line("kl", "KL", _RED),)),
        Panel("Entropy", "nats per token", (Line("entropy", "entropy", _BLUE),)),
        Panel("Completion length", "tokens", (length,), between=("completions/min_length", "completions/max_length")),
        Panel("Reward weights", "weight", _parts(rows, "weight/", "")),
        Panel("Gradient norm", "L2 norm", (Line("grad_norm", "gradient norm", _RED),)),
        Panel("Log-prob gap, sampler to learner", "nats per token", (gap,)),
    )


def _parts(rows: Sequence[Row], prefix: str, suffix: str) -> tuple[Line, ...]:
    """A line per reward part in the rows, the usual ones first; format, which has its own panel, is left out."""
    keys = {key for row in rows for key in row if key.startswith(prefix) and key.endswith(suffix)}
    found = {key[len(prefix) : len(key) - len(suffix)] for key in keys} - {"format"}
    colors = dict(_PART_COLORS)
    for number, name in enumerate(sorted(found - colors.keys())):
        colors[name] = _OTHER_COLORS[number % len(_OTHER_COLORS)]
    return tuple(Line(prefix + name + suffix, name, colors[name]) for name in colors if name in found)


def _bands(x: Sequence[int], labels: Sequence[str]) -> Iterable[tuple[float, float, str]]:
    """Runs of one label, half a step wider than their steps on either side."""
    starts = [i for i in range(len(x)) if i == 0 or labels[i] != labels[i - 1]]
    for start, end in itertools.pairwise([*starts, len(x)]):
        yield x[start] - 0.5, (x[end] - 0.5 if end < len(x) else x[-1] + 0.5), labels[start]


def _draw(axes: Axes, lane: Track, panel: Panel, evaluations: Sequence[Row]) -> None:
    marks = {str(row.get("stage", "")): values([row], "accuracy")[0] for row in evaluations if panel.held_out}
    marks = {stage: height for stage, height in marks.items() if np.isfinite(height)}
    shown = [np.array([*marks.values()]), *(values(lane.rows, key) for key in panel.between)]
    if panel.between:
        axes.fill_between(lane.x, shown[1], shown[2], color=_SKY, alpha=0.25, linewidth=0)
    for index, line in enumerate(panel.lines):
        y = values(lane.rows, line.key)
        if np.isfinite(y).any():
            shown.append(_curve(axes, lane, y, line, faint=index == 0 or len(panel.lines) <= 3))
    _scale(axes, lane, np.concatenate(shown))
    _mark(axes, marks)
    _shade(axes, lane)
    _dress(axes, lane, panel)


def _curve(axes: Axes, lane: Track, y: np.ndarray, line: Line, *, faint: bool) -> np.ndarray:
    """Draws each stage's piece of the curve and returns every height it put on the panel."""
    bold = y.copy()
    for stage in lane.stages:
        bold[stage] = smoothed(y[stage])
        axes.plot(lane.x[stage], bold[stage], color=line.color, linewidth=1.7)
        if faint:
            axes.plot(lane.x[stage], y[stage], color=line.color, linewidth=0.8, alpha=0.3)
    edge = np.pad(np.isfinite(y), 1)
    alone = edge[1:-1] & ~edge[:-2] & ~edge[2:]
    axes.plot(lane.x[alone], y[alone], "o", color=line.color, markersize=4)
    style = "o" if (alone == edge[1:-1]).all() else "-"
    axes.plot([], [], style, color=line.color, linewidth=1.7, markersize=4, label=line.label.replace("$", r"\$"))
    return np.concatenate([bold, y])


def _scale(axes: Axes, lane: Track, shown: np.ndarray) -> None:
    """Limits that hold everything drawn, with a strip on top for the labels of the bands."""
    low, high = np.nanmin(shown), np.nanmax(shown)
    low = 0.0 if 0 <= low < 0.5 * high else low
    height = (high - low) or abs(high) or 1.0
    axes.set_ylim(low - 0.05 * height, high + 0.2 * height)
    axes.set_xlim(lane.x[0] - 0.5, lane.x[-1] + 0.5)


def _mark(axes: Axes, marks: Mapping[str, float]) -> None:
    """Evaluations between stages as dashed lines, named at the right edge without covering each other."""
    bottom, top = axes.get_ylim()
    room = 0.21 * (top - bottom)
    names = sorted(marks, key=marks.__getitem__)
    places = list(itertools.accumulate((marks[name] for name in names), lambda below, own: max(own, below + room)))
    for name, place in zip(names, places, strict=True):
        color = (_GREY, _BLUE, _RED, _PINK)[list(marks).index(name) % 4]
        label = "held out, after stage" if name == names[0] else "_"
        axes.axhline(marks[name], color=color, linestyle=(0, (5, 3)), linewidth=1.1, label=label)
        place -= max(0.0, places[-1] + room / 2 - top)
        axes.text(1.015, place, f"{name}\n{marks[name]:.1%}", transform=axes.get_yaxis_transform(), color=color,
                  fontsize=7.5, va="center", parse_math=False)  # fmt: skip


def _shade(axes: Axes, lane: Track) -> None:
    colors = {label: _BAND_COLORS[i % 4] for i, label in enumerate(dict.fromkeys(band[2] for band in lane.bands))}
    for left, right, label in lane.bands:
        if label:
            axes.axvspan(left, right, color=colors[label], linewidth=0, zorder=0)
        # About 400 points of width and 5 a letter: a label that would run into its neighbour is not written.
        if 300 * (right - left) / (lane.bands[-1][1] - lane.bands[0][0]) > 5 * len(label):
            axes.annotate(label, (left, 1), xycoords=("data", "axes fraction"), xytext=(4, -3), fontsize=7.5, va="top",
                          textcoords="offset points", color="#5A6675", parse_math=False)  # fmt: skip


def _dress(axes: Axes, lane: Track, panel: Panel) -> None:
    """Title, units and grid; the legend stands above the panel, where it covers no line."""
    entries = len(axes.get_legend_handles_labels()[0])
    legend_rows = math.ceil(entries / 5) if entries > 1 or panel.between else 0
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", color=_INK, pad=6 + 12 * legend_rows)
    if legend_rows:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.03, 0.97), ncols=5, frameon=False, fontsize=7.5,
                    handlelength=1.1, handletextpad=0.4, columnspacing=0.9).set_in_layout(False)  # fmt: skip
    axes.set_xlabel(f"{lane.name} step", fontsize=8, color="#444444", labelpad=1)
    axes.set_ylabel(panel.unit, fontsize=8, color="#444444")
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0) if panel.percent else "{x:.5g}")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=5))
    axes.tick_params(labelsize=8, length=2, color="#999999", labelcolor="#444444")
    axes.grid(color="#8899AA", alpha=0.22, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    FigureCanvasAgg(figure).print_png(partial)
    os.replace(partial, path)
