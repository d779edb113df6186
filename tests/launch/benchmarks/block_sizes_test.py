"""The search for block sizes: what it tries, what it takes, and what it writes for the kernels to read."""

import importlib
import json
import types

import pytest

from thinkfirst.kernels import blocks
from thinkfirst.kernels.cost import profile, table
from thinkfirst.launch.benchmarks import block_sizes, cycle_counts

CHOICES = ({"block": 512}, {"block": 1024}, {"block": 2048})
UNTOUCHED = {"sample": {"64 rows": {"part": 64}}, "causal": {"8 heads": {"block": 256}}}


@pytest.fixture
def search(monkeypatch, tmp_path):
    """search(cycles by block, 0 for the default) -> (figures, status, the table that was written)."""

    def run(cycles, known=None, case="causal_g3_fwd"):
        def estimate(module, case, *, chip, trial):
            assert (module, case, trial["op"]) == ("kernels.flash_attention.cases", "short", "causal")
            found = cycles[trial["sizes"].get("block", 0)]
            if found is None:
                raise profile.ProfileError("out of VMEM")
            return types.SimpleNamespace(cycles=found, looked_up=[["causal", "4 heads"], ["other", "1 head"]])

        cases = types.SimpleNamespace(SEARCH={"causal_g3_fwd": blocks.Search("causal", CHOICES, "short")})
        monkeypatch.setattr(block_sizes.importlib, "import_module", lambda name: cases)
        monkeypatch.setattr(table, "module_of", lambda op, case: f"kernels.{op}.cases")
        monkeypatch.setattr(cycle_counts, "versions", lambda chips: {"libtpu": "0.0.1"})
        monkeypatch.setattr(profile, "estimate", estimate)
        file = tmp_path / "v5e.json"
        if known:
            file.write_text(json.dumps(known))
        figures, status = block_sizes.search(["v5e"], [case], tmp_path)
        return figures, status, json.loads(file.read_text()) if file.is_file() else None

    return run


def test_the_best_choice_is_marked_and_written_under_what_the_kernel_looks_up(search, capsys):
    figures, status, written = search({0: 100_000, 512: None, 1024: 96_000, 2048: 98_000}, UNTOUCHED)
    assert [(one["sizes"], one["cycles"], one["best"]) for one in figures] == [
        ({}, 100_000, False),
        ({"block": 512}, None, False),
        ({"block": 1024}, 96_000, True),
        ({"block": 2048}, 98_000, False),
    ]
    assert status == 0
    assert written == {**UNTOUCHED, "causal": {**UNTOUCHED["causal"], "4 heads": {"block": 1024}}}
    assert "out of VMEM" in capsys.readouterr().out


def test_less_than_a_hundredth_keeps_the_default_and_takes_an_old_entry_out(search):
    figures, status, written = search(
        {0: 100_000, 512: 100_000, 1024: 99_500, 2048: 120_000}, {"causal": {"4 heads": {"block": 2048}}}
    )
    assert [one["best"] for one in figures] == [True, False, False, False]
    assert (status, written) == (0, {})


def test_a_default_that_does_not_compile_is_replaced(search):
    _, _, written = search({0: None, 512: 300_000, 1024: 200_000, 2048: 120_000})
    assert written == {"causal": {"4 heads": {"block": 2048}}}


def test_nothing_is_written_where_nothing_could_be_counted_or_tried(search, capsys):
    assert search(dict.fromkeys((0, 512, 1024, 2048)))[1:] == (1, None)
    assert search({}, case="packed_ratio") == ([], 1, None)
    assert "none of these cases offers block sizes" in capsys.readouterr().out


def test_what_is_searched_is_a_case_of_the_table():
    searched = 0
    for op in {row.op for row in table.ROWS if not row.not_built}:
        rows = {row.case for row in table.ROWS if row.op == op}
        known = table.cases_of(op)
        for name in set(known.values()):
            module = importlib.import_module(name)
            for case, search in getattr(module, "SEARCH", {}).items():
                assert known.get(case) == name and case in rows, f"{name}: --search would never come to {case}"
                assert (search.counts or case) in module.CASES
                assert all(isinstance(size, int) for sizes in search.choices for size in sizes.values())
                searched += 1
    assert searched
