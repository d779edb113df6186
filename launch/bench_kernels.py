"""Estimated cycles of the kernels and their peers on TPU chips that are not there (kernels/cost)."""

import importlib
import importlib.metadata
import importlib.util
import sys
from typing import Any

from thinkfirst.kernels.cost import chips, profile, table

Figure = dict[str, Any]


def run(chip_names: list[str], case_names: list[str], *, peers: bool) -> tuple[list[Figure], int]:
    """A figure per case and chip, printed as they come; 1 if a case could not be counted, else 0."""
    rows = table.chosen(case_names)
    targets = [chips.named(name) for name in chip_names]
    profile.require()
    versions = {package: importlib.metadata.version(package) for package in ("jax", "jaxlib", "libtpu")}
    print(f"estimated cycles, by the static profile of libtpu {versions['libtpu']}; no TPU has run these programs")
    figures = []
    for chip in targets:
        counted: dict[str, profile.Estimate] = {}
        for row in rows:
            figure = {**_figure(row, chip, counted, peers=peers), "versions": versions}
            figures.append(figure)
            print(line(figure), flush=True)
    return figures, int(any(figure["error"] for figure in figures))


def _figure(row: table.Row, chip: chips.Chip, counted: dict[str, profile.Estimate], *, peers: bool) -> Figure:
    """What is known of one case on one chip; `counted` keeps the estimates made on the way."""
    figure: Figure = {
        "case": row.case,
        "chip": chip.name,
        "cycles": None,
        "static_cycles": None,
        "ratio": None,
        "hbm_bytes": None,
        "temp_bytes": None,
        "vmem_bytes": None,
        "target": row.target if chip.name == "v5e" else None,
        "temp_target": row.temp_target or None,
        "peer": row.peer or None,
        "peer_cycles": None,
        "peer_temp_bytes": None,
        "recorded": dict(row.recorded) if chip.name == "v5e" else {},
        "error": "",
    }

    def count(module: str, case: str) -> profile.Estimate:
        if case not in counted:
            counted[case] = profile.estimate(module, case, chip=chip.name)
        return counted[case]

    try:
        _require_case(row.module, row.case)
        ours = count(row.module, row.case)
        figure |= {name: getattr(ours, name) for name in ("cycles", "static_cycles", "hbm_bytes", "vmem_bytes")}
        figure["temp_bytes"] = ours.temp_bytes
        if row.over:
            figure["ratio"] = ours.cycles / count(row.module, row.over).cycles
    except (profile.ProfileError, LookupError) as error:
        figure["error"] = str(error)
    if peers and row.peer:
        try:
            _require_case(table.PEERS, row.peer)
            peer = count(table.PEERS, row.peer)
            figure |= {"peer_cycles": peer.cycles, "peer_temp_bytes": peer.temp_bytes}
        except (profile.ProfileError, LookupError) as error:
            print(f"no count of the peer: {error}", file=sys.stderr)
    return figure


def _require_case(module: str, case: str) -> None:
    """LookupError, in words for the table, where there is no such case."""
    package = module.rpartition(".")[0]
    if importlib.util.find_spec(package) is None or importlib.util.find_spec(module) is None:
        raise LookupError(f"no kernel yet: there is no {module}")
    if case not in importlib.import_module(module).CASES:
        raise LookupError(f"no kernel yet: {module} has no {case}")


def line(figure: Figure) -> str:
    """The figure as a line of text."""
    head = f"{figure['case']:24s} {figure['chip']:4s}"
    if figure["error"]:
        return f"{head} {figure['error']}"
    value = figure["ratio"] if figure["ratio"] is not None else figure["cycles"]
    shown = f"{value:10.3f}" if figure["ratio"] is not None else f"{value:10,d}"
    parts = [head, shown, f"temp {figure['temp_bytes'] / 2**20:7.1f} MiB"]
    if figure["target"]:
        parts.append(f"target {figure['target']:,} {'met' if value <= figure['target'] else 'MISSED'}")
    if figure["peer_cycles"]:
        parts.append(f"{figure['peer']} {figure['peer_cycles']:,}")
    parts += [f"{name} {cycles:,}" for name, cycles in figure["recorded"].items()]
    return "  ".join(parts)
