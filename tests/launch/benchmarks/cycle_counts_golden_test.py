"""Cycles of the cheaper cases stay within 3 % of those that `make bench-kernels` last wrote down."""

import importlib.metadata
import importlib.util
import json
import pathlib

import pytest

from thinkfirst.kernels.cost import chips, table
from thinkfirst.launch.benchmarks import cycle_counts, cycle_table

ROOT = pathlib.Path(__file__).resolve().parents[3]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "kernel_cycles.json").read_text())
# cycles the profiler has to walk through for a case, at most: ten seconds of one core, and three for the other chips
CHEAP = {"v5e": 400_000, "v5p": 100_000, "v6e": 100_000}
GATE = 0.03

figures = pytest.mark.parametrize("golden", GOLDEN, ids=[f"{golden['case']}-{golden['chip']}" for golden in GOLDEN])


def measure(figure):
    return figure["cycles"] if figure["ratio"] is None else figure["ratio"]


def cost(golden):
    """What the profiler walks through for the case and for those it is compared with."""
    (row,) = table.chosen([golden["case"]])
    compared = (row.less, row.over, row.bytes_over)
    others = [other for other in GOLDEN if other["chip"] == golden["chip"] and other["case"] in compared]
    return sum(figure["static_cycles"] or 0 for figure in (golden, *others))


def test_every_case_is_written_down_and_some_of_each_chip_are_cheap_enough_to_count_again():
    held = list(dict.fromkeys(golden["chip"] for golden in GOLDEN))
    assert "v5e" in held
    assert set(held) <= set(CHEAP) == set(chips.CHIPS)
    for chip in held:
        of_chip = [golden for golden in GOLDEN if golden["chip"] == chip]
        assert [golden["case"] for golden in of_chip] == [row.case for row in table.ROWS]
        assert sum(golden["cycles"] is not None and cost(golden) <= CHEAP[chip] for golden in of_chip) >= 3


def test_the_page_shows_what_is_written_down():
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert cycle_table.render(GOLDEN) in page, "docs/kernels.md and the golden cycles differ: run `make bench-kernels`"


@pytest.mark.long
@figures
def test_cycles_have_not_moved(golden):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("left out: cycles of the kernels; libtpu is not installed")
    counted_by, here = golden["versions"]["libtpu"], importlib.metadata.version("libtpu")
    if counted_by != here:
        pytest.skip(f"left out: cycles of the kernels; they were counted by libtpu {counted_by}, this is {here}")
    if golden["cycles"] is None:
        pytest.skip(f"left out: {golden['case']}: {golden['not_built'] or golden['error']}")
    if cost(golden) > CHEAP[golden["chip"]]:
        pytest.skip(f"left out for its {cost(golden):,} cycles: make bench-kernels counts all")
    (found,), _ = cycle_counts.run([golden["chip"]], [golden["case"]], peers=False)
    assert not found["error"]
    assert measure(found) == pytest.approx(measure(golden), rel=GATE), "if it is meant: make bench-kernels"
