"""Special ids are those of generation_config.json, then of config.json; bad ones name their file."""

import dataclasses
import json
import re

import pytest

from thinkfirst.models import config, hf_config

SMALL = dataclasses.replace(config.demo_gemma3(), vocab_size=200)
BASE = hf_config.to_hf(SMALL, dtype="float32", special=hf_config.SpecialIds(2, (1,), 0))
MULTIMODAL = {"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": {"num_hidden_layers": 3}}


def written(folder, raw, generation):
    (folder / "config.json").write_text(json.dumps(raw))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def without(raw, key):
    return {name: value for name, value in raw.items() if name != key}


@pytest.mark.parametrize(
    "raw, generation, expected",
    [
        (BASE, None, (2, (1,), 0)),
        (BASE, {"eos_token_id": [1, 106], "top_k": 64}, (2, (1, 106), 0)),
        (BASE, {"bos_token_id": 5, "eos_token_id": 107, "pad_token_id": None}, (5, (107,), 0)),
        (BASE | {"eos_token_id": [1, 107]}, {}, (2, (1, 107), 0)),
        (MULTIMODAL, None, (2, (1, 106), 0)),
        (without(MULTIMODAL, "eos_token_id"), None, (2, (1,), 0)),
    ],
)
def test_special_ids_are_those_of_generation_first(tmp_path, raw, generation, expected):
    assert hf_config.special_ids(written(tmp_path, raw, generation)) == hf_config.SpecialIds(*expected)


@pytest.mark.parametrize(
    "name, eos_ids", [("gemma-2-2b", (1,)), ("gemma-2-2b-it", (1, 107)), ("gemma-3-1b-it", (1, 106))]
)
def test_published_special_ids_are_read(data_dir, tmp_path, name, eos_ids):
    kept = data_dir / "gemma" / "configs"
    generation = json.loads((kept / f"{name}.generation_config.json").read_text())
    folder = written(tmp_path, json.loads((kept / f"{name}.config.json").read_text()), generation)
    assert hf_config.special_ids(folder) == hf_config.SpecialIds(2, eos_ids, 0)


@pytest.mark.parametrize(
    "file, generation, message",
    [
        ("config.json", {"eos_token_id": None}, "missing key 'pad_token_id'"),
        ("generation_config.json", {"eos_token_id": []}, "eos_token_id is an empty list"),
        (
            "generation_config.json",
            {"eos_token_id": [1, "106"]},
            "eos_token_id '106' is not an id of a vocabulary of 200",
        ),
        ("generation_config.json", {"eos_token_id": 200}, "eos_token_id 200 is not an id of a vocabulary of 200"),
        ("generation_config.json", {"bos_token_id": True}, "bos_token_id True is not an id"),
        ("generation_config.json", {"bos_token_id": [2]}, "bos_token_id [2] is not an id"),
        ("generation_config.json", {"pad_token_id": -1}, "pad_token_id -1 is not an id"),
        ("generation_config.json", [], "not a JSON object"),
    ],
)
def test_bad_special_ids_name_the_file_that_has_them(tmp_path, file, generation, message):
    raw = without(BASE, "pad_token_id") if file == "config.json" else BASE
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / file}: {message}")):
        hf_config.special_ids(written(tmp_path, raw, generation))
