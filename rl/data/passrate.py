"""Difficulty as measured: how often a model solved each problem, read from {"id", "pass_rate"} lines."""

from thinkfirst.rl.data import rows

EASY, HARD = 2 / 3, 1 / 3  # easy from here up, hard below


def read(path: str) -> dict[str, float]:
    """Pass rate by problem id; one problem has one line."""
    rates: dict[str, float] = {}
    for row in rows.read(path):
        name, rate = row.text("id"), row.fields.get("pass_rate")
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 1:
            raise row.error("'pass_rate' must be a number in 0..1", rate)
        if name in rates:
            raise row.error("'id' must not have stood on a line before", name)
        rates[name] = float(rate)
    return rates


def difficulty(pass_rate: float) -> str:
    """easy, medium or hard."""
    return "easy" if pass_rate >= EASY else "hard" if pass_rate < HARD else "medium"
