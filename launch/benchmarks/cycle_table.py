"""The table of estimated cycles as Markdown, between two markers of a file that is otherwise written by hand."""

import datetime
import pathlib
from typing import Any

from thinkfirst.core import files
from thinkfirst.launch.benchmarks import cycle_counts

BEGIN = "<!-- make bench-kernels writes from here -->"
END = "<!-- to here -->"


def check(path: pathlib.Path) -> None:
    """ValueError unless the file has the two markers."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path}: no place for the table: it takes the lines {BEGIN!r} and {END!r}")


def write(path: pathlib.Path, figures: list[dict[str, Any]]) -> None:
    """Puts the table of `figures` between the markers."""
    check(path)
    text = path.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    files.write_text(path, f"{before}{BEGIN}\n\n{render(figures)}\n\n{made(figures, date)}\n\n{after}")


def made(figures: list[dict[str, Any]], date: str) -> str:
    """With what, and when."""
    versions = ", ".join(f"{name} {version}" for name, version in figures[0]["versions"].items())
    return f"Estimated on {date} with {versions}."


def render(figures: list[dict[str, Any]]) -> str:
    """A Markdown table, a line per case and chip."""
    heads = ("case", "chip", "estimated cycles", "target", "temp", "VMEM", "spills", "peer", "its cycles", "its temp")
    rows = [heads, ("---",) * len(heads), *map(_cells, figures)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _cells(figure: dict[str, Any]) -> tuple[str, ...]:
    counted = figure["cycles"] is not None
    peers = [(figure["peer"], cycle_counts.peer_shown(figure))] if figure["peer_cycles"] else []
    peers += [(f"{name} (recorded)", cycle_counts.shown(cycles)) for name, cycles in figure["recorded"].items()]
    return (
        figure["case"],
        figure["chip"],
        cycle_counts.ours_shown(figure) if counted else figure["not_built"] or figure["error"],
        _target(figure, counted=counted),
        _temp(figure),
        cycle_counts.mebibytes(figure["vmem_bytes"]) if figure["vmem_bytes"] else "",
        cycle_counts.mebibytes(figure["spill_bytes"]) if counted else "",
        "<br>".join(name for name, _ in peers),
        "<br>".join(cycles for _, cycles in peers),
        cycle_counts.mebibytes(figure["peer_temp_bytes"]) if figure["peer_temp_bytes"] is not None else "",
    )


def _target(figure: dict[str, Any], *, counted: bool) -> str:
    if not figure["target"]:
        return ""
    return cycle_counts.shown(figure["target"]) + (f", {cycle_counts.target_verdict(figure)}" if counted else "")


def _temp(figure: dict[str, Any]) -> str:
    if figure["temp_bytes"] is None:
        return ""
    found, most = (cycle_counts.mebibytes(figure[name] or 0) for name in ("temp_bytes", "temp_target"))
    if not figure["temp_target"] or figure["temp_case"] == figure["case"]:
        return found
    return f"{found} of {most}, {cycle_counts.verdict(figure['temp_bytes'], figure['temp_target'])}"
