import pytest

from thinkfirst.rl.data import jsonl


def test_optional_fields(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "Q", "answer": "A", "domain": "science", "choices": ["x", "y"]}\n\n')
    [shown] = jsonl.read(str(path))
    assert (shown.problem.domain, shown.problem.choices, shown.completion) == ("science", ("x", "y"), "")


@pytest.mark.parametrize(
    "line",
    [
        '{"question": "Q"}',
        '{"question": "", "answer": "A"}',
        "{",
        "[1]",
        '{"question": "Q", "answer": "A", "tests": "x"}',
        '{"question": "Q", "answer": "A", "difficulty": 3}',
        '{"question": "Q", "answer": "C", "choices": ["x", "y"]}',
        '{"question": "Q", "answer": "", "domain": "math"}',
    ],
)
def test_bad_lines_name_file_and_line(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "Q", "answer": "A"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl:2"):
        jsonl.read(str(path))


@pytest.mark.parametrize("more", ['"domain": "creative"', '"domain": "code", "tests": ["assert f()"]'])
def test_open_domains_and_tests_need_no_answer(tmp_path, more):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "Q", ' + more + ', "choices": null}\n')
    [shown] = jsonl.read(str(path))
    assert shown.problem.answer == ""
