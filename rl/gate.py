"""Whether a stage is kept: the same held-out problems before and after it, compared pair by pair.

    d_i = metric after - metric before on problem i          statistic: the mean of d

Had the stage changed nothing but noise, each d_i could as well have had the other sign.  p is the share of all 2^n
choices of signs whose mean is as low as the one seen, or lower (R. A. Fisher's randomisation test, The Design of
Experiments, 1935, section 21): exact for few problems, drawn for many, and never below 2^-n, so that four problems
cannot condemn a stage at the 5 % level.  The stage is given up if p is below the level: worse, and not by chance.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from thinkfirst.rl import estimates, evaluation


def decide(
    before: Mapping[str, Any], after: Mapping[str, Any], *, metric: evaluation.Metric, level: float
) -> dict[str, Any]:
    """The verdict on the stage between two evaluations, as final_results.json keeps it.

    ValueError when they have no problem in common that the metric is known of.
    """
    old, new = _values(before, metric), _values(after, metric)
    both = [name for name in old if name in new]
    if not both:
        raise ValueError(f"no held-out problem has a {metric} in both {before['stage']!r} and {after['stage']!r}")
    change = [new[name] - old[name] for name in both]
    p = estimates.sign_flip(change)
    return {
        "before": before["stage"],
        "after": after["stage"],
        "metric": metric,
        "problems": len(both),
        "mean_before": sum(old[name] for name in both) / len(both),
        "mean_after": sum(new[name] for name in both) / len(both),
        "difference": sum(change) / len(both),
        "difference_interval": list(estimates.bootstrap(change)),
        "p_worse": p,
        "level": level,
        "kept": p >= level,
    }


def line(verdict: Mapping[str, Any]) -> str:
    """The verdict in a line."""
    low, high = verdict["difference_interval"]
    what = "kept" if verdict["kept"] else f"given up: back to {verdict['before']}"
    return (
        f"{verdict['metric']} {verdict['mean_before']:.3f} -> {verdict['mean_after']:.3f} on {verdict['problems']} "
        f"problems, difference {verdict['difference']:+.3f} ({low:+.3f} to {high:+.3f}), chance of such a fall "
        f"{verdict['p_worse']:.3f}, limit {verdict['level']:g}: {what}"
    )


def _values(row: Mapping[str, Any], metric: evaluation.Metric) -> dict[str, float]:
    """The metric of each problem that it is known of."""
    field = "lenient" if metric == "accuracy" else "strict"
    rows: Sequence[Mapping[str, Any]] = row["by_problem"]
    return {
        found["id"]: found[field]
        for found in rows
        if found[field] is not None and (metric == "score" or not found["open"])
    }
