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


GOOD = {"completion": "<reasoning>Step 1: 9 + 9 = 18</reasoning><answer>18</answer>", "answer": "18", "domain": "math"}


def test_tokens_bring_confidence_and_verbosity(graded):
    text = GOOD["completion"]
    begin = text.index("<answer>") + len("<answer>")
    spans = [[0, begin], [begin, begin + 1], [begin + 1, begin + 2], [begin + 2, len(text)]]
    row = {**GOOD, "difficulty": "easy", "spans": spans, "logprobs": [-9.0, math.log(0.5), math.log(0.5), -9.0]}
    (found,) = graded([row], "show_work")
    # c = 1/2, right: 1 - 1/4; .45 of the trace, .40 and .15 of the confidence
    assert found["confidence"] == pytest.approx(0.75) and found["verbosity"] == 0.0
    assert found["total"] == pytest.approx(0.45 + 0.40 + 0.15 * 0.75)
    (found,) = graded([{**row, "logprobs": []}], "show_work")
    assert found["confidence"] is None and found["verbosity"] == 0.0 and found["total"] == pytest.approx(0.85)
    (found,) = graded([{**GOOD, "difficulty": "easy", "logprobs": [-9.0]}], "show_work")
    assert found["confidence"] is None and found["verbosity"] is None, "log-probs of tokens that stand nowhere"


def test_weights_depend_on_the_step_and_can_be_set(graded):
    row = {**GOOD, "difficulty": "easy"}
    assert graded([row], "show_work", "--step=200")[0]["total"] == pytest.approx(0.25 + 0.60)
    assert graded([row], "show_work", "--set", "trace.start=0.2")[0]["total"] == pytest.approx(0.2 + 0.4)
    assert graded([row], "think_first", "--set", "math.merit=1")[0]["total"] == pytest.approx(1.025)
    assert graded([row], "think_first", "--set", "code.merit=1")[0]["total"] == pytest.approx(0.625)


def test_a_reward_of_the_users_own_is_tried(graded, tmp_path, monkeypatch):
    (tmp_path / "my_grades.py").write_text("def f(completions, problems, *, step, phase):\n    return [step, None]\n")
    monkeypatch.syspath_prepend(tmp_path)
    first, second = graded([GOOD, GOOD], "think_first", "--reward=0.5*my_grades:f", "--step=3")
    assert first["parts"]["f"] == 3.0 and first["total"] == pytest.approx(0.625 + 1.5)
    assert second["parts"]["f"] is None and second["total"] == pytest.approx(0.625)


def test_no_rows_make_an_empty_file(graded):
    assert graded([], "show_work") == []


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", "rows.jsonl:2: not JSON"),
        ("[]", "rows.jsonl:2: not a JSON object"),
        ({"completion": "x", "domain": "math"}, "rows.jsonl:2: needs 'answer', has completion, domain"),
        ({"answer": "x", "domain": "math"}, "rows.jsonl:2: needs 'completion'"),
        ({"completion": "x", "answer": "18"}, "rows.jsonl:2: needs 'domain'"),
        ({**GOOD, "answer": 18}, "rows.jsonl:2: answer must be text, not 18"),
        ({**GOOD, "completion": None}, "rows.jsonl:2: completion must be text, not null"),
        ({**GOOD, "domain": ["math"]}, 'rows.jsonl:2: domain must be text, not ["math"]'),
        ({**GOOD, "stopped": 1}, "rows.jsonl:2: stopped must be true or false, not 1"),
        ({**GOOD, "choices": "ab"}, 'rows.jsonl:2: choices must be a list, not "ab"'),
        ({**GOOD, "choices": ["18", 19]}, "rows.jsonl:2: choices[1] must be text, not 19"),
        ({**GOOD, "spans": [[0, 999]]}, "rows.jsonl:2: spans[0]=[0, 999] is no [begin, end] in 0..60"),
        ({**GOOD, "spans": [[0, 1], 3]}, "rows.jsonl:2: spans[1]=3 is no [begin, end]"),
        ({**GOOD, "spans": [[0, 1]], "logprobs": [-1, -2]}, "rows.jsonl:2: 2 logprobs for 1 spans"),
        ({**GOOD, "spans": [[0, 1]], "logprobs": ["-1"]}, 'rows.jsonl:2: logprobs[0]="-1" is no number'),
        ({**GOOD, "spans": [[0, 1]], "logprobs": [math.nan]}, "rows.jsonl:2: logprobs[0]=NaN is no number"),
        ({**GOOD, "domain": "chess"}, "rows.jsonl:2': domain 'chess' is none of math, choice"),
        ({**GOOD, "choices": ["1", "2"]}, "rows.jsonl:2': its answer '18' is none of its choices"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path, capsys, row, message):
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_text("\n".join([json.dumps(GOOD), row if isinstance(row, str) else json.dumps(row), ""]))
    assert grade.main(["grade", f"--input={path}", f"--out={out}", "--pipeline=think_first"]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--pipeline=show_more"], "show_more"),
        ([], "pipeline"),
        (["--pipeline=show_work", "--step=0"], "step"),
        (["--pipeline=show_work", "--set", "math.merit=1"], "no setting 'math'"),
        (["--pipeline=think_first", "--set", "math.merit=x"], "expected float"),
        (["--pipeline=think_first", "--reward=nowhere_at_all:f"], "module nowhere_at_all cannot be imported"),
        (["--pipeline=think_first", "--reward=f"], "it must be written module:function"),
        (["--pipeline=think_first", "more"], "unexpected argument 'more'"),
    ],
)
def test_a_bad_command_is_refused(tmp_path, capsys, arguments, message):
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_text(json.dumps(GOOD))
    assert grade.main(["grade", f"--input={path}", f"--out={out}", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
