import gzip
import json
import sys
import types

import pytest

from thinkfirst.rl.data import rows


def read(path):
    return [(row.place.replace(str(path.parent), ""), row.fields) for row in rows.read(str(path))]


def test_places_in_an_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\n[ {"a": 1}, {"a":\n 2},\n\n{"a": "]"}\n]\n')
    assert read(path) == [
        ("/a.json:2 (row 0)", {"a": 1}),
        ("/a.json:2 (row 1)", {"a": 2}),
        ("/a.json:5 (row 2)", {"a": "]"}),
    ]


def test_an_array_may_be_empty_and_a_json_file_may_hold_lines(tmp_path):
    (tmp_path / "a.json").write_text("[ ]")
    (tmp_path / "b.json").write_text('\ufeff{"a": 1}\n')
    assert read(tmp_path / "a.json") == []
    assert read(tmp_path / "b.json") == [("/b.json:1", {"a": 1})]


def test_places_in_a_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,"two\nlines, ""quoted"""\n\n3,4\n')
    assert read(path) == [
        ("/a.csv:2 (row 0)", {"a": "1", "b": 'two\nlines, "quoted"'}),
        ("/a.csv:5 (row 1)", {"a": "3", "b": "4"}),
    ]


def test_a_table_without_its_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,2\n3,4\n")
    assert [row.fields["b"] for row in rows.read(str(path), columns=("a", "b"))] == ["2", "4"]
    path.write_text("A,b\n3,4\n")
    assert [row.fields["b"] for row in rows.read(str(path), columns=("a", "b"))] == ["4"]


def test_packed_files_and_folders(tmp_path):
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"a": 2}\n'))
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "LICENSE").write_text("free")
    assert [row.fields["a"] for row in rows.read(str(tmp_path))] == ["1", 2]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": }\n', r"a\.jsonl:2: not JSON: .*'\{\"a\": \}'"),
        ("a.json", b'[{"a": 1},\n{"a": }]', r"a\.json:2 \(row 1\): not JSON: .*'\{\"a\": \}\]'"),
        ("a.json", b'[{"a": 1},\n7]', r"a\.json:2 \(row 1\): not a JSON object: '7'"),
        ("a.json", b'[{"a": 1} {"a": 2}]', r"a\.json:1 \(row 0\): neither ',' nor '\]' after .*: '\{\"a\": 2\}\]'"),
        ("a.json", b'[{"a": 1},\n', r"a\.json:2 \(row 1\): not JSON"),
        ("a.json", b'[{"a": 1}', r"a\.json:1 \(row 0\): neither"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv:3 \(row 1\): 3 cells under 2 columns: \['1', '2', '3'\]"),
        ("a.csv", b'a,b\n1,"2\n', r"a\.csv:2: not CSV: unexpected end of data"),
        ("a.csv", b"a\n\xff\n", r"a\.csv: not UTF-8 at byte 2"),
        ("a.jsonl.gz", b"plain", r"a\.jsonl\.gz: not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0)[:-9], r"a\.jsonl\.gz: not a whole gzip file"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        rows.read(str(tmp_path / name))


@pytest.mark.parametrize("name", ["none.jsonl", "none.csv", "none.parquet", "none.json.gz", "none"])
def test_missing_files_are_named(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}: no such file"):
        rows.read(str(tmp_path / name))


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "LICENSE").write_text("free")
    with pytest.raises(ValueError, match=r"no \.jsonl, \.json, \.csv, \.parquet file in this folder"):
        rows.read(str(tmp_path))


@pytest.mark.parametrize(
    ("module", "path"), [("pyarrow", "a.parquet"), ("datasets", "hf:openai/gsm8k/main#train")]
)
def test_what_the_extra_brings_is_named_where_it_is_missing(tmp_path, monkeypatch, module, path):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"{path}: .* {module}: pip install 'thinkfirst\[hf\]'"):
        rows.read(path)


@pytest.mark.parametrize("path", ["hf:gsm8k#x", "hf:openai/gsm8k", "hf:openai/gsm8k#", "hf:a/b/c/d#x", "hf:a//c#x"])
def test_hub_names_have_an_owner_and_a_split(path):
    with pytest.raises(ValueError, match="a hub name is hf:OWNER/NAME#SPLIT"):
        rows.read(path)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("hf:openai/gsm8k/main#train", ("openai/gsm8k", "main", "train")),
        ("hf:ChilleD/SVAMP#test", ("ChilleD/SVAMP", "test")),
    ],
)
def test_rows_of_the_hub(monkeypatch, path, asked):
    calls = []

    def load_dataset(*names, split):
        calls.append((*names, split))
        return [{"a": 1}, {"a": 2}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = rows.read(path)
    assert calls == [asked]
    assert [(row.place, row.fields["a"]) for row in found] == [(f"{path} (row 0)", 1), (f"{path} (row 1)", 2)]


@pytest.mark.parametrize("error", [FileNotFoundError("no such set"), ValueError("no such split")])
def test_what_the_hub_refuses_is_named(monkeypatch, error):
    def load_dataset(*names, split):
        raise error

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ValueError, match=f"^hf:a/b#train: {error}"):
        rows.read("hf:a/b#train")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="left out: Parquet, which needs pyarrow (the extra hf)")
    parquet = pytest.importorskip("pyarrow.parquet")
    fields = [{"question": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answer": 1}, {"question": "R"}]
    parquet.write_table(pyarrow.Table.from_pylist(fields), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert found[0] == ("/a.parquet (row 0)", fields[0])
    assert found[1] == ("/a.parquet (row 1)", {"question": "R", "choices": None, "answer": None})
    (tmp_path / "b.parquet").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"b\.parquet: not Parquet"):
        rows.read(str(tmp_path / "b.parquet"))


def test_long_values_are_cut_in_errors():
    row = rows.Row("f:1", {"a": 7 * "x"}, "f")
    assert str(row.error("wrong", "y" * 500)) == f"f:1: wrong, got '{'y' * 119}..."
