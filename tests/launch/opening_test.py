"""Bad input to score, generate and export: one clear message, exit status 2, nothing written."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from thinkfirst.launch import export, generate, recipes, score

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
ROW = '{"tokens": [2, 5, 6]}'
WEIGHTS = "model.safetensors"


def run(program, capsys, tmp_path, *arguments):
    """(exit status, what was said) of a program that must write nothing."""
    out = tmp_path / "out"
    status = program.main([program.__name__, f"--out={out}", *arguments])
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1, said
    return status, said


@pytest.fixture
def rows(tmp_path):
    """Writes lines to a file; returns its path."""

    def write(*lines):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(GOLDEN / "hf_gemma2", tmp_path / "model")
    return tmp_path / "model"


def rewritten(folder, change):
    held = safetensors.numpy.load_file(folder / WEIGHTS)
    change(held)
    safetensors.numpy.save_file(held, folder / WEIGHTS)


def header_of(folder, change):
    """Changes the header of the weights, keeping its length."""
    raw = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def overlap(header):
    header["model.layers.0.mlp.up_proj.weight"]["data_offsets"] = header["model.layers.0.mlp.gate_proj.weight"][
        "data_offsets"
    ]


def truncate(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def corrupt(folder):
    raw = bytearray((folder / WEIGHTS).read_bytes())
    raw[8:12] = b"\xff\x00\xff\x00"
    (folder / WEIGHTS).write_bytes(raw)


def pickle(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def lengthen_header(folder):
    (folder / WEIGHTS).write_bytes((2**40).to_bytes(8, "little") + (folder / WEIGHTS).read_bytes()[8:])


@pytest.mark.parametrize(
    "damage, message",
    [
        (truncate, "cut short: its header describes"),
        (corrupt, "its header is not JSON"),
        (pickle, "pytorch_model.bin: a pickle, which runs code"),
        (lengthen_header, "a header of 1099511627776 bytes"),
        (lambda folder: header_of(folder, overlap), "overlaps the one before it"),
        (
            lambda folder: rewritten(folder, lambda held: held.update(x=held.pop("model.norm.weight"))),
            "missing model.norm.weight; unexpected x",
        ),
        (
            lambda folder: rewritten(folder, lambda held: held.update({"model.norm.weight": np.zeros(16, np.int32)})),
            "model.norm.weight is I32, expected one of BF16, F16, F32",
        ),
        (
            lambda folder: rewritten(folder, lambda held: held.update({"model.norm.weight": np.zeros(17, np.float32)})),
            "model.norm.weight has shape (17,), expected (16,)",
        ),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{\n oops"), "config.json:2: not JSON"),
        (lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": 64}'), "64"),
    ],
)
@pytest.mark.parametrize("program", [score, export])
def test_a_damaged_checkpoint(program, damage, message, *, folder, rows, capsys, tmp_path):
    damage(folder)
    asked = [f"--input={rows(ROW)}"] if program is score else []
    status, said = run(program, capsys, tmp_path, f"--checkpoint={folder}", *asked)
    assert status == 2 and message in said and str(folder) in said


@pytest.mark.parametrize(
    "line, message",
    [
        ("{oops", "rows.jsonl:2: not JSON"),
        ("[2]", "rows.jsonl:2: not a JSON object"),
        ("{}", "rows.jsonl:2: needs one of tokens, text, messages, has none"),
        ('{"tokens": [2], "text": "x"}', "rows.jsonl:2: needs one of tokens, text, messages, has tokens, text"),
        ('{"tokens": "2"}', 'rows.jsonl:2: tokens must be a list of ids, not "2"'),
        ('{"tokens": [2, 64]}', "rows.jsonl:2: tokens[1]=64 is no id in 0..63"),
        ('{"tokens": [2, -1]}', "rows.jsonl:2: tokens[1]=-1 is no id in 0..63"),
        ('{"tokens": [2.0]}', "rows.jsonl:2: tokens[0]=2.0 is no id"),
        ('{"tokens": [true]}', "rows.jsonl:2: tokens[0]=true is no id"),
        ('{"text": "hello"}', "no such tokenizer file"),
        (json.dumps({"tokens": [2] * 65}), "rows.jsonl:2: 65 tokens, the model was made for 64"),
    ],
)
def test_a_bad_row(line, message, rows, capsys, tmp_path):
    arguments = [f"--checkpoint={GOLDEN / 'hf_gemma2'}", f"--input={rows(ROW, line)}"]
    status, said = run(score, capsys, tmp_path, *arguments)
    assert status == 2 and message in said


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": 3}, "rows.jsonl:1: text must be text, not 3"),
        ({"messages": [], "completion": 3}, "rows.jsonl:1"),
        ({"messages": [{"role": "user", "content": "x"}]}, "rows.jsonl:1: needs one of completion, has none"),
        ({"messages": [{"role": "robot", "content": "x"}], "completion": "y"}, "robot"),
        ({"text": "\ud800"}, "surrogate"),
    ],
)
def test_a_bad_row_of_text(row, message, rows, capsys, tmp_path):
    arguments = [f"--checkpoint={recipes.DEMO_BASE}", f"--input={rows(json.dumps(row))}"]
    status, said = run(score, capsys, tmp_path, *arguments)
    assert status == 2 and message in said


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name one source of prompts"),
        (["--prompt=x", "--input=y"], "name one source of prompts"),
        (["--prompt=x", "--num_samples=0"], "--num_samples=0 must be at least 1"),
        (["--prompt=x", "--lanes=0"], "--lanes=0 must be at least 1"),
        (["--prompt=x", "--seed=-1"], "--seed=-1 must be at least 0"),
        (["--prompt=x", "--temperature=-1"], "temperature=-1"),
        (["--prompt=x", "--top_p=0"], "top_p=0"),
        (["--prompt=x", "--max_new_tokens=0"], "max_new_tokens=0"),
        (["--prompt=x", "--max_new_tokens=256"], "the model was made for 256"),
        (["--prompt=x", "--dtype=float16"], "float16"),
        (["--prompt=x", "--set", "mesh.fsdp=3"], "cannot be split into groups of 3"),
        (["--prompt=x", "--set", "mesh.rows=3"], "no setting 'rows'"),
        (["--prompt=x", "--adapter=nowhere"], "nowhere"),
        (["--prompt=x", "--tokenizer=nowhere"], "nowhere: no such tokenizer file"),
        (["--prompt=x", f"--workdir={recipes.DEMO_BASE}"], "name one model"),
        (["--prompt=x", "extra"], "unexpected argument 'extra'"),
        (["--input=nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_bad_flags(arguments, message, capsys, tmp_path):
    status, said = run(generate, capsys, tmp_path, f"--checkpoint={recipes.DEMO_BASE}", *arguments)
    assert status == 2 and message in said


def test_what_is_no_model(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    for flag, message in [
        ("--checkpoint=nowhere", "nowhere: no such folder"),
        (f"--workdir={recipes.DEMO_BASE}", "its config.json is not that of a run"),
        (f"--checkpoint={tmp_path / 'empty'}", "config.json"),
    ]:
        status, said = run(export, capsys, tmp_path, flag)
        assert status == 2 and message in said


def test_only_a_tokenizer_json_says_what_to_fetch(folder, rows, capsys, tmp_path):
    (folder / "tokenizer.json").write_text("{}")
    arguments = [f"--checkpoint={folder}", f"--input={rows(json.dumps({'text': 'x'}))}"]
    status, said = run(score, capsys, tmp_path, *arguments)
    assert status == 2 and "tokenizer.json" in said and "fetch tokenizer.model" in said


def test_a_tokenizer_of_another_model_is_refused_before_weights_are_read(folder, rows, capsys, tmp_path):
    (folder / WEIGHTS).unlink()
    asked = f"--input={rows(ROW)}"
    tokenizer = f"--tokenizer={recipes.DEMO_BASE / 'tokenizer.model'}"
    status, said = run(score, capsys, tmp_path, f"--checkpoint={folder}", asked, tokenizer)
    assert status == 2 and "512 pieces, but the model's embedding has 64 rows" in said


def test_help_names_the_flags(capsys):
    for program in (score, generate, export):
        assert program.main([program.__name__, "--help"]) == 0
        assert "--checkpoint" in capsys.readouterr().out
