import pathlib

import pytest

from thinkfirst.core import files


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def full(self, content):
        raise OSError("no space left")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("text", "line"), [('{"a": 1}\n{oops}\n', 2), ("[1]\n", 1), ('\n\n"x"\n', 3)])
def test_bad_json_lines_name_file_and_line(tmp_path, text, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"rows\.jsonl:{line}: not"):
        files.read_json_lines(path)
