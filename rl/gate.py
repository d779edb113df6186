"""Whether a stage is kept: the same held-out problems before and after it, compared pair by pair.

    d_i = metric after - metric before on problem i          statistic: the mean of d

Had the stage changed nothing but noise, each d_i could as well have had the other sign.  p is the share of all 2^n
choices of signs whose mean is as low as the one seen, or lower (R. A. Fisher's randomisation test, The Design of
Experiments, 1935, section 21): exact for few problems, drawn for many, and never below 2^-n, so that four problems
cannot condemn a stage at the 5 % level.  The stage is given up if p is below the level: worse, and not by chance.

Of several metrics each is a chance to be unlucky: a level of 5 % is shared out among them (C. E. Bonferroni, 1936).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from thinkfirst.rl import estimates, evaluation


def decide(
    before: Mapping[str, Any], after: Mapping[str, Any], *, metrics: Sequence[evaluation.Metric], level: float
) -> dict[str, Any]:
    """The verdict on the stage between two evaluations, as final_results.json keeps it: kept if no metric fell.

    A metric that no problem is known by, in both, is left out; ValueError if that leaves none.
    """
    found = {metric: compared for metric in metrics if (compared := _compared(before, after, metric))}
    if not found:
        names = " or ".join(metrics)
        raise ValueError(f"no held-out problem has a {names} in both {before['stage']!r} and {after['stage']!r}")
    share = level / len(found)
    kept = all(compared["p_worse"] >= share for compared in found.values())
    return {
        "before": before["stage"],
        "after": after["stage"],
        "level": level,
        "kept": kept,
        "metrics": {metric: {**compared, "limit": share} for metric, compared in found.items()},
    }


def lines(about: str, verdict: Mapping[str, Any]) -> list[str]:
    """The verdict, and a line for each metric."""
    shown = [f"{about}: kept" if verdict["kept"] else f"{about}: given up, back to {verdict['before']}"]
    for metric, compared in verdict["metrics"].items():
        low, high = compared["difference_interval"]
        shown.append(
            f"  {metric} {compared['mean_before']:.3f} -> {compared['mean_after']:.3f} "
            f"on {compared['problems']} problems, difference {compared['difference']:+.3f} "
            f"({low:+.3f} to {high:+.3f}), chance of such a fall {compared['p_worse']:.3f}, limit {compared['limit']:g}"
        )
    return shown


def _compared(
    before: Mapping[str, Any], after: Mapping[str, Any], metric: evaluation.Metric
) -> dict[str, Any] | None:
    """One metric on the problems that both know it of; None where there is none."""
    old, new = _values(before, metric), _values(after, metric)
    both = [name for name in old if name in new]
    if not both:
        return None
    change = [new[name] - old[name] for name in both]
    return {
        "problems": len(both),
        "mean_before": sum(old[name] for name in both) / len(both),
        "mean_after": sum(new[name] for name in both) / len(both),
        "difference": sum(change) / len(both),
        "difference_interval": list(estimates.bootstrap(change)),
        "p_worse": estimates.sign_flip(change),
    }


def _values(row: Mapping[str, Any], metric: evaluation.Metric) -> dict[str, float]:
    """The metric of each problem that it is known of."""
    field = "lenient" if metric == "accuracy" else "strict"
    rows: Sequence[Mapping[str, Any]] = row["by_problem"]
    return {
        found["id"]: found[field]
        for found in rows
        if found[field] is not None and (metric == "score" or not found["open"])
    }
