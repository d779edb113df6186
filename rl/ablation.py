"""The design of show_work's reward, one part after the other: what each adds, on canned outputs and in training.

    Correctness only     1.00 correctness
    + trace              0.55 correctness + 0.45 trace                         - 0.05 verbosity
    + confidence         0.50 correctness + 0.35 trace + 0.15 confidence       - 0.05 verbosity
    annealed             0.40 -> 0.60       0.45 -> 0.25       0.15            - 0.05 verbosity

"annealed early" and "annealed late" are the last at the beginning and at the end of training.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from thinkfirst.rl import batch, curriculum, estimates, grading, plots, stages
from thinkfirst.rl.rewards import composite

OVER = 200  # steps of the annealing in the table
COLORS = ("#777777", "#0072B2", "#E69F00", "#009E73")

QUESTION = batch.Problem(
    "canned", "Ana has 12 pens. She buys 3 boxes of 6 pens and gives away 5. How many pens does she have?", "25",
    difficulty="hard",
)  # fmt: skip
# (what it is, text, probability of every token of it)
OUTPUTS = (
    (
        "good + rich",
        "<reasoning>Step 1: The boxes hold 3*6=18 pens.\nStep 2: With hers that is 12+18=30 pens.\n"
        "Step 3: Without those given away 30-5=25.</reasoning><answer>25</answer>",
        0.95,
    ),
    ("good + minimal", "<reasoning>Step 1: 12+18-5=25.</reasoning><answer>25</answer>", 0.9),
    ("correct, no trace", "<reasoning>It is clear.</reasoning><answer>25</answer>", 0.6),
    (
        "wrong with trace",
        "<reasoning>Step 1: The boxes hold 3*6=18 pens.\nStep 2: With hers that is 12+18=30 pens.\n"
        "Step 3: With those given away 30+5=35.</reasoning><answer>35</answer>",
        0.95,
    ),
)


def schedule(trace: float, correctness: float, confidence: float, verbosity: float) -> stages.RewardSchedule:
    """Weights that stay as they are."""
    return stages.RewardSchedule(*(curriculum.Anneal(w, w, 1) for w in (trace, correctness, confidence, verbosity)))


def designs(over: int) -> dict[str, stages.RewardSchedule]:
    """The rewards that are trained with, by name."""
    return {
        "correctness only": schedule(0.0, 1.0, 0.0, 0.0),
        "+ trace": schedule(0.45, 0.55, 0.0, 0.05),
        "+ confidence": schedule(0.35, 0.50, 0.15, 0.05),
        "annealed": stages.RewardSchedule(
            trace=curriculum.Anneal(0.45, 0.25, over),
            correctness=curriculum.Anneal(0.40, 0.60, over),
            confidence=curriculum.Anneal(0.15, 0.15, over),
            verbosity=curriculum.Anneal(0.05, 0.05, over),
        ),
    }


def canned() -> dict[str, list[float]]:
    """The reward of every canned output under every design; the annealed one at its first and its last step."""
    at = {name: (row, 1) for name, row in designs(OVER).items()}
    annealed, _ = at.pop("annealed")
    at |= {"annealed early": (annealed, 1), "annealed late": (annealed, OVER)}
    table = {}
    for name, (row, step) in at.items():
        weights = grading.composite_weights(row, step)
        totals = [composite.grade(_completion(text, sure), QUESTION, weights).total for _, text, sure in OUTPUTS]
        table[name] = [total for total in totals if total is not None]
    return table


def canned_lines() -> list[str]:
    """The table as Markdown."""
    head = ["reward", *(name for name, _, _ in OUTPUTS), "right beats wrong by"]
    rows = [[name, *(f"{value:.3f}" for value in (*row, min(row[:3]) - row[3]))] for name, row in canned().items()]
    return markdown(head, rows)


def trained_lines(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What came of training, by design: `runs` are final evaluations, one for each seed.

    The interval is of the mean over the problems, each of which counts by its mean over the seeds; how far seeds are
    apart stands beside it.
    """
    head = ["reward", "accuracy", "95 % over problems", "by seed", "strict", "format", "trace", "ECE", "tokens"]
    rows = []
    for name, found in runs.items():
        by_seed = [{row["id"]: row["lenient"] for row in run["by_problem"]} for run in found]
        per_problem = [float(np.mean([seed[problem] for seed in by_seed])) for problem in by_seed[0]]
        low, high = estimates.bootstrap(per_problem)
        means = [_mean(run[key] for run in found) for key in ("accuracy_strict", "format_rate", "trace_score")]
        rows.append(
            [
                name,
                f"{_mean(run['accuracy'] for run in found):.3f}",
                f"{low:.3f}-{high:.3f}",
                " ".join(f"{run['accuracy']:.3f}" for run in found),
                *(f"{value:.3f}" for value in means),
                f"{_mean(run['calibration_error'] for run in found):.3f}",
                f"{_mean(run['mean_tokens'] for run in found):.1f}",
            ]
        )
    return markdown(head, rows)


def picture(metrics: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], path: pathlib.Path) -> None:
    """Accuracy and trace of the training samples by step: the mean over seeds, and from the least to the most."""
    figure = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    for place, (key, title) in enumerate((("correctness", "Right answers"), ("trace", "Trace score"))):
        axes = figure.add_subplot(1, 2, place + 1)
        for (name, seeds), color in zip(metrics.items(), COLORS, strict=False):
            rows = [[row for row in seed if row.get("kind") == "grpo"] for seed in seeds]
            curves = np.stack([plots.smoothed(plots.values(row, f"rewards/{key}/mean")) for row in rows])
            step = np.arange(1, curves.shape[1] + 1)
            axes.plot(step, curves.mean(axis=0), color=color, linewidth=1.7, label=name)
            axes.fill_between(step, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.15, linewidth=0)
        axes.set_title(f"{title} of training samples", fontsize=10)
        axes.set_xlabel("GRPO step (shaded: least to most over the seeds)", fontsize=8)
        axes.set_ylim(0, 1.02)
        axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.legend(fontsize=8, loc="lower right")
    FigureCanvasAgg(figure).print_png(str(path))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    padded = (
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        for line in (head, ["-" * width for width in widths], *rows)
    )
    return [f"| {' | '.join(line)} |" for line in padded]


def _completion(text: str, sure: float) -> batch.Completion:
    """A text whose every character is a token of that probability."""
    return batch.Completion(text, tuple((i, i + 1) for i in range(len(text))), (math.log(sure),) * len(text))


def _mean(found: Any) -> float:
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else math.nan
