"""Estimated cycles of the kernels and their peers on TPU chips that are not there (kernels/cost)."""

import functools
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

from thinkfirst.kernels.cost import chips, profile, table

Figure = dict[str, Any]
Count = Callable[[str, str], profile.Estimate]  # of a module and a case


def run(chip_names: Sequence[str], case_names: list[str], *, peers: bool) -> tuple[list[Figure], int]:
    """A figure per case and chip, printed as they come; 1 if a case could not be counted, else 0."""
    rows = table.chosen(case_names)
    counted_by = versions(chip_names)
    print(f"estimated cycles, by the static profile of libtpu {counted_by['libtpu']}; no TPU has run these programs")
    figures = []
    for chip in chip_names:
        count = functools.cache(functools.partial(profile.estimate, chip=chip))
        for row in rows:
            figure = {**_ours(row, chip, count), **_peer(row, chip, count, asked=peers), "versions": counted_by}
            figures.append(figure)
            print(line(figure), flush=True)
    return figures, int(any(figure["error"] for figure in figures))


def versions(chip_names: Sequence[str]) -> dict[str, str]:
    """What estimates are made with; an error for a chip that there are none for, and where there is no libtpu."""
    for name in chip_names:
        chips.named(name)
    profile.require()
    return {package: importlib.metadata.version(package) for package in ("jax", "jaxlib", "libtpu")}


def _ours(row: table.Row, chip: str, count: Count) -> Figure:
    """Our side of the figure."""
    figure: Figure = {
        "case": row.case,
        "chip": chip,
        "cycles": None,
        "ratio": None,
        "static_cycles": None,
        "kernel_cycles": None,
        "hbm_bytes": None,
        "temp_bytes": None,
        "temp_case": None,
        "vmem_bytes": None,
        "spill_bytes": None,
        "operations": {},
        "target": row.target if chip == "v5e" else None,
        "temp_target": row.temp_target or None,
        "not_built": row.not_built,
        "error": "",
    }
    if row.not_built:
        return figure
    try:
        case = row.counts or row.case
        found = count(table.module_of(row.op, case), case)
        figure |= {name: getattr(found, name) for name in figure if hasattr(found, name)}
        figure["temp_case"] = row.case
        if row.less:
            figure |= _less(figure, count(table.module_of(row.op, row.less), row.less))
        if row.over:
            figure["ratio"] = found.cycles / count(table.module_of(row.op, row.over), row.over).cycles
        if row.bytes_over:
            whole = count(table.module_of(row.op, row.bytes_over), row.bytes_over)
            figure["ratio"] = found.hbm_bytes / whole.hbm_bytes
        if row.temp_target:
            figure["temp_case"] = large = f"{row.case}_memory"
            figure["temp_bytes"] = profile.temp_bytes(table.module_of(row.op, large), large, chip=chip)
    except (profile.ProfileError, LookupError) as error:
        figure["error"] = str(error)
    return figure


def _less(figure: Figure, part: profile.Estimate) -> Figure:
    """The cycles of a program without those of a part of it that was counted alone."""
    return {name: figure[name] - getattr(part, name) for name in ("cycles", "kernel_cycles")}


def _peer(row: table.Row, chip: str, count: Count, *, asked: bool) -> Figure:
    """The side of the peer; what could not be counted is said in "peer_error"."""
    figure: Figure = {
        "peer": row.peer or None,
        "peer_cycles": None,
        "peer_kernel_cycles": None,
        "peer_temp_bytes": None,
        "peer_error": "",
        "recorded": dict(row.recorded) if chip == "v5e" else {},
    }
    if not (asked and row.peer):
        return figure
    try:
        found = count(table.PEERS, row.peer)
        counted = {"cycles": found.cycles, "kernel_cycles": found.kernel_cycles}
        if row.peer_less:
            counted = _less(counted, count(table.PEERS, row.peer_less))
        figure |= {f"peer_{name}": cycles for name, cycles in counted.items()}
        figure["peer_temp_bytes"] = (
            profile.temp_bytes(table.PEERS, f"{row.peer}_memory", chip=chip) if row.temp_target else found.temp_bytes
        )
    except profile.ProfileError as error:
        figure["peer_error"] = str(error)
    return figure


def line(figure: Figure) -> str:
    """The figure as a line of text."""
    head = f"{figure['case']:24s} {figure['chip']:4s}"
    counted = figure["cycles"] is not None
    parts = [head, ours_shown(figure)] if counted else [head, figure["not_built"]]
    if figure["target"] and counted:
        parts.append(f"target {shown(figure['target'])} {target_verdict(figure)}")
    if figure["temp_bytes"] is not None:
        parts.append(f"temp {mebibytes(figure['temp_bytes'])}")
        if figure["temp_target"] and figure["temp_case"] != figure["case"]:
            parts.append(
                f"of {mebibytes(figure['temp_target'])} {verdict(figure['temp_bytes'], figure['temp_target'])}"
            )
    if figure["peer_cycles"] or figure["peer_error"]:
        parts.append(f"{figure['peer']} {figure['peer_error'] or peer_shown(figure)}")
    parts += [f"{name} {shown(cycles)} (recorded)" for name, cycles in figure["recorded"].items()]
    return "  ".join([*parts, figure["error"]]).rstrip()


def shown(value: int | float) -> str:
    """Cycles as whole numbers, ratios with their digits."""
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,d}"


def ours_shown(figure: Figure) -> str:
    """The ratio, or the cycles of the program."""
    return (
        _with_kernels(figure["cycles"], figure["kernel_cycles"]) if figure["ratio"] is None else shown(figure["ratio"])
    )


def peer_shown(figure: Figure) -> str:
    """Cycles of the peer."""
    return _with_kernels(figure["peer_cycles"], figure["peer_kernel_cycles"])


def _with_kernels(cycles: int, alone: int) -> str:
    """Cycles of a program, and of its kernels alone where it has kernels and more."""
    return shown(cycles) + (f" (kernels alone {shown(alone)})" if 0 < alone < cycles else "")


def mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def target_verdict(figure: Figure) -> str:
    """Whether the ratio, or the program, meets the target, or at least its kernels alone do."""
    if figure["ratio"] is not None:
        return verdict(figure["ratio"], figure["target"])
    whole, alone = (verdict(figure[name], figure["target"]) for name in ("cycles", "kernel_cycles"))
    return "met by the kernels alone" if whole != alone else whole


def verdict(value: int | float, target: int | float) -> str:
    return "met" if value <= target else "MISSED"
