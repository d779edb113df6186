import json

import pytest

from thinkfirst.rl.data import gsm8k


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_solution_becomes_a_trace(tmp_path):
    row = {"question": "Q?", "answer": "He has 48/2 = <<48/2=24>>24.\nSo 48+24 = <<48+24=72>>72.\n#### 1,072"}
    [shown] = gsm8k.read(write(tmp_path / "a.jsonl", row))
    assert shown.completion == (
        "<reasoning>Step 1: He has 48/2 = 24.\nStep 2: So 48+24 = 72.</reasoning><answer>1,072</answer>"
    )
    assert (shown.problem.answer, shown.problem.difficulty, shown.problem.domain) == ("1,072", "easy", "math")


@pytest.mark.parametrize(
    "row", [{"question": "Q"}, {"question": "Q", "answer": "no marker"}, {"question": 3, "answer": "#### 1"}]
)
def test_bad_rows_name_file_and_line(tmp_path, row):
    path = write(tmp_path / "bad.jsonl", {"question": "Q", "answer": "a\n#### 1"}, row)
    with pytest.raises(ValueError, match=r"bad\.jsonl:2"):
        gsm8k.read(path)


def test_the_real_files(data_dir):
    rows = gsm8k.read(str(data_dir / "gsm8k" / "test.jsonl"))
    assert len(rows) == 1319
    assert rows[0].problem.answer == "18"
    assert {row.problem.difficulty for row in rows} == {"easy", "medium", "hard"}
    assert not any("<<" in row.completion for row in rows)
