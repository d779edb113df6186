"""`grade` on rows written by hand, with every trick known, in every domain; and what it says of bad input."""

import json
import math
import pathlib

import pytest

from thinkfirst.launch import grade

CASES = pathlib.Path(__file__).resolve().parents[1] / "rl" / "rewards" / "cases"
SECTIONS = {
    "{1}": "## Analysis & Strategy\nWe add what Ann has and what Bob brings.\n",
    "{2}": "## Step-by-Step Execution\nAnn has 9 pens and Bob brings 9 pens, so 9 + 9 = 18.\n",
    "{3}": "## Verification & Self-Correction\nTaking 9 away from 18 leaves 9, as it should.\n",
    "{4}": "## Final Synthesis\nTogether they have 18 pens on the table.\n",
}
NEW = {"extracted", "correctness", "structure", "format", "trace", "confidence", "verbosity", "total", "parts"}


def written(text):
    """{R} stands for four sections in order, {1} to {4} for one of them."""
    text = text.replace("{R}", "<reasoning>\n{1}{2}{3}{4}</reasoning>")
    for mark, section in SECTIONS.items():
        text = text.replace(mark, section)
    return text


def cases(domain):
    """Rows to grade, and what is expected of each by pipeline."""
    found = [json.loads(line) for line in (CASES / f"{domain}.jsonl").read_text().splitlines()]
    return [{"domain": domain, **case, "completion": written(case["completion"])} for case in found]


@pytest.fixture
def graded(tmp_path):
    """Rows through the program."""

    def run(rows, pipeline="think_first", *arguments):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = [f"--input={tmp_path / 'rows.jsonl'}", f"--out={tmp_path / 'out.jsonl'}"]
        assert grade.main(["grade", *files, f"--pipeline={pipeline}", *arguments]) == 0
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    return run


@pytest.mark.parametrize("domain", ["math", "choice", "code", "span", "general", "open"])
def test_rows_written_by_hand(graded, domain):
    rows = cases(domain)
    assert len(rows) >= 60
    assert len({(row["completion"], row.get("answer"), row.get("question")) for row in rows}) >= 60
    wrong = []
    for pipeline, key in (("think_first", "want"), ("show_work", "show_work")):
        asked = [row for row in rows if key in row]
        for row, found in zip(asked, graded(asked, pipeline), strict=True):
            assert {name: found[name] for name in row} == row, "a row out is the row in and more"
            assert found.keys() == row.keys() | NEW
            for name, expected in row[key].items():
                got = found[name] if name in found else found["parts"][name]
                same = got == expected or (
                    isinstance(expected, int | float) and got is not None and math.isclose(got, expected, abs_tol=1e-9)
                )
                if not same:
                    wrong.append(f"{pipeline}, {row['why']}: {name} is {got}, expected {expected}")
    assert not wrong, "\n".join(wrong)
