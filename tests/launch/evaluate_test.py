"""`evaluate` on the demo's base: what it prints, writes and compares; and what it says of bad input."""

import json

import pytest

from thinkfirst.launch import evaluate, recipes

ROWS = [
    {"question": "What is 2 + 3?", "answer": "5"},
    {"question": "What is 9 + 8?", "answer": "17", "difficulty": "hard"},
    {"question": "Write f(x): x plus 1.", "domain": "code", "tests": ["assert f(1) == 2"]},
    {"question": "Write two sentences.", "domain": "creative"},
]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_is_evaluated_and_compared_with_itself(rows, tmp_path, capsys):
    """The base adds in the style it was taught, not in ours: right when read leniently, never strictly."""
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    line = [f"--checkpoint={recipes.DEMO_BASE}", f"--problems={rows}", "--samples=2", "--max_new_tokens=24"]
    line += ["--pipeline=none", "--temperature=0.5"]
    assert evaluate.main(["evaluate", *line, f"--out={before}"]) == 0
    assert evaluate.main(["evaluate", *line, f"--out={after}", f"--before={before}"]) == 0
    found = json.loads(after.read_text())
    assert found["accuracy_greedy"] == 2 / 3 and found["accuracy_strict"] == 0 and found["format_rate"] == 0
    assert found["by_domain"].keys() == {"math", "code", "creative"} and found["by_domain"]["code"] == 0
    assert found["pass_at"].keys() == found["maj_at"].keys() == {"1", "2"}
    assert found["failures"]["format"] > 0 and found["problems"] == 4
    assert found["compared"]["metrics"]["score"]["difference"] == 0 and found["compared"]["kept"]
    assert found["by_problem"] == json.loads(before.read_text())["by_problem"]
    shown = capsys.readouterr().out
    for text in ("sandbox: ", "pass      @1", "maj       @1", "format", "domain", "difficulty", "failures", "a gate"):
        assert text in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=x"], "name the problems: --problems=FILE or --suite"),
        (["--checkpoint=x", "--suite", "--problems=y"], "name the problems"),
        (["--problems=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--suite"], "name one model"),
        (["--suite", "--checkpoint=nowhere"], "nowhere: no such folder"),
        (["--suite", "--reader=nope"], "reader"),
        (["--suite", "--samples=0"], "samples"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert evaluate.main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_bad_row_and_a_bad_result_are_named(rows, tmp_path, capsys):
    rows.write_text(json.dumps({"question": "Q", "domain": "code", "tests": ["f(1)"]}) + "\n")
    assert evaluate.main(["evaluate", "--checkpoint=x", f"--problems={rows}"]) == 2
    assert "rows.jsonl:1: 'tests' must be Python asserts" in capsys.readouterr().err
    (tmp_path / "before.json").write_text("{}")
    assert evaluate.main(["evaluate", "--checkpoint=x", "--suite", f"--before={tmp_path / 'before.json'}"]) == 2
    assert "before.json: no result of thinkfirst-evaluate" in capsys.readouterr().err
