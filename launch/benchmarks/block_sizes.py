"""Block sizes by search: each choice that a case offers is counted, the best is kept in kernels/block_sizes.

A case is searched if its module has it in SEARCH.  What the kernel would take without any table is tried first, and
stays unless another choice takes a hundredth off the program's cycles.
"""

import importlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from thinkfirst.core import files
from thinkfirst.kernels import blocks
from thinkfirst.kernels.cost import profile, table
from thinkfirst.launch.benchmarks import cycle_counts

GAIN = 0.01  # less is not worth an entry

Figure = dict[str, Any]


def search(chip_names: Sequence[str], case_names: list[str], folder: pathlib.Path) -> tuple[list[Figure], int]:
    """A figure per choice, printed as they come, the best marked; 1 if a case has no choice that could be counted."""
    versions = cycle_counts.versions(chip_names)
    figures, status = [], 0
    for chip in chip_names:
        for row in table.chosen(case_names):
            found, shapes = _tried(row, chip)
            if not found:
                continue
            best = _best(found)
            same = {"case": row.case, "chip": chip, "versions": versions}
            figures += [{**same, **one, "best": one is best} for one in found]
            if best is None:
                status = 1
            else:
                _write(folder / f"{chip}.json", best, shapes)
    if not figures:
        print("none of these cases offers block sizes to search")
    return figures, status if figures else 1


def _tried(row: table.Row, chip: str) -> tuple[list[Figure], list[str]]:
    """Each choice of the case, counted, the kernel's default first; and for which shapes sizes are looked up."""
    try:
        module = table.module_of(row.op, row.case)
    except LookupError:
        return [], []
    asked = getattr(importlib.import_module(module), "SEARCH", {}).get(row.case)
    if asked is None:
        return [], []
    found: list[Figure] = []
    shapes: list[str] = []
    for sizes in ({}, *asked.choices):
        figure: Figure = {"op": asked.op, "sizes": sizes, "cycles": None, "error": ""}
        try:
            trial = {"op": asked.op, "sizes": sizes}
            counted = profile.estimate(module, asked.counts or row.case, chip=chip, trial=trial)
            figure["cycles"] = counted.cycles
            shapes = [shape for op, shape in counted.looked_up if op == asked.op]
        except profile.ProfileError as error:
            figure["error"] = str(error)
        shown = cycle_counts.shown(figure["cycles"]) if figure["cycles"] else figure["error"]
        print(f"{row.case:24s} {chip:4s} {shown:>12}  {json.dumps(sizes) if sizes else 'default'}", flush=True)
        found.append(figure)
    return found, shapes


def _best(found: list[Figure]) -> Figure | None:
    """The choice to take: the default, unless it could not be counted or another is better by GAIN."""
    counted = [figure for figure in found if figure["cycles"]]
    if not counted:
        return None
    default, best = found[0], min(counted, key=lambda figure: figure["cycles"])
    return default if default["cycles"] and best["cycles"] > default["cycles"] * (1 - GAIN) else best


def _write(file: pathlib.Path, best: Figure, shapes: list[str]) -> None:
    """Puts the sizes into the chip's table, or takes out what is there where the default is best."""
    known = json.loads(file.read_text()) if file.is_file() else {}
    of_op = {shape: sizes for shape, sizes in known.get(best["op"], {}).items() if shape not in shapes}
    if best["sizes"]:
        of_op |= dict.fromkeys(shapes, best["sizes"])
    known[best["op"]] = of_op
    kept = {op: of_op for op, of_op in known.items() if of_op}
    files.write_text(file, json.dumps(kept, indent=1, sort_keys=True) + "\n")
    blocks.table.cache_clear()
