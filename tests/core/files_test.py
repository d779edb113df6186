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


def test_a_separator_inside_a_string_is_no_end_of_line():
    rows = files.parse_json_lines('{"a": "x\u2028y\x85z"}\r\n\n{"b": 1}', "here")
    assert rows == [("here:1", {"a": "x\u2028y\x85z"}), ("here:3", {"b": 1})]
    assert files.parse_json_lines(files.json_lines([{"a": "\n"}, {}]), "x") == [("x:1", {"a": "\n"}), ("x:2", {})]


def test_lines_that_are_not_utf_8_name_their_file(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"rows\.jsonl: not UTF-8 at byte 7"):
        files.read_json_lines(tmp_path / "rows.jsonl")


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a" / "b"
    with pytest.raises(OSError, match="stop"), files.new_folder(target) as part:
        part.mkdir()
        (part / "config.json").write_text("half")
        raise OSError("stop")
    assert not target.exists() and not any(target.parent.iterdir())
    for text in ("first", "second"):
        with files.new_folder(target) as part:
            part.mkdir()
            (part / "config.json").write_text(text)
        assert (target / "config.json").read_text() == text
    assert [path.name for path in target.parent.iterdir()] == ["b"]
