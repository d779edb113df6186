"""A checkpoint folder is whole or not there, and what stands beside the weights goes with them."""

import json
import shutil

import jax
import numpy as np
import pytest

import checkpoints
from thinkfirst.models import config, flax_weights, gemma, hf_config, hf_weights, weights
from thinkfirst.models import tokenizer as tokenizer_lib

GOLDEN = checkpoints.GOLDEN
NAMES = ("hf_gemma2", "hf_gemma3")
BESIDE = {"tokenizer.json": "{}", "tokenizer_config.json": '{"a": 1}', "generation_config.json": '{"top_k": 64}'}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "some.model"
    texts = ["How many apples are left?", "There are 12 apples and 30 pears.\n", "user\nmodel\n"] * 20
    tokenizer_lib.train(texts, file, vocab_size=300)
    return tokenizer_lib.Tokenizer(file)


def opened(folder):
    """(model, where its parameters go) on one device."""
    model = gemma.Model(weights.config(folder))
    return model, checkpoints.layout(model)


@pytest.fixture
def source(tmp_path, words):
    """A golden folder with a tokenizer and settings beside it."""
    shutil.copytree(GOLDEN / "hf_gemma3", tmp_path / "source")
    for name, content in BESIDE.items():
        (tmp_path / "source" / name).write_text(content)
    shutil.copyfile(words.path, tmp_path / "source" / tokenizer_lib.FILE_NAME)
    return tmp_path / "source"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["hf", "orbax"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_opened(name, form, tmp_path):
    model, where = opened(GOLDEN / name)
    params = weights.load(GOLDEN / name, model, where)
    weights.save(tmp_path / "out", model, params, form=form, source=GOLDEN / name)
    assert weights.config(tmp_path / "out") == model.config
    assert weights.special_ids(tmp_path / "out") == weights.special_ids(GOLDEN / name)
    jax.tree.map(np.testing.assert_array_equal, weights.load(tmp_path / "out", model, where), params)
    assert flax_weights.is_one(tmp_path / "out") == (form == "orbax")
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside it"


def test_a_config_says_what_it_said_before(tmp_path):
    for name in NAMES:
        model, where = opened(GOLDEN / name)
        weights.save(tmp_path / name, model, weights.load(GOLDEN / name, model, where), source=GOLDEN / name)
        theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (GOLDEN / name, tmp_path / name))
        for key in ours.keys() & theirs.keys():
            assert json.dumps(ours[key]) == json.dumps(theirs[key]), key  # 5 is not 5.0: transformers checks types


def test_tokenizer_and_settings_go_along(source, tmp_path):
    model, where = opened(GOLDEN / "hf_gemma3")
    params = weights.load(source, model, where)
    words = tokenizer_lib.Tokenizer(source)
    weights.save(tmp_path / "out", model, params, words=words, source=source)
    for name in ("tokenizer.json", "tokenizer_config.json", tokenizer_lib.FILE_NAME):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings["top_k"] == 64 and settings["eos_token_id"] == list(words.stop_ids)
    assert weights.special_ids(tmp_path / "out").eos_ids == words.stop_ids


def test_another_tokenizer_takes_no_files_of_the_old_one_along(source, words, tmp_path):
    model, where = opened(source)
    weights.save(tmp_path / "out", model, weights.load(source, model, where), words=words, source=source)
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert (tmp_path / "out" / tokenizer_lib.FILE_NAME).read_bytes() == words.path.read_bytes()


def test_weights_are_written_as_they_are_stored_and_computed_in_what_is_asked(tmp_path):
    model, where = opened(GOLDEN / "hf_gemma3")
    params = weights.load(GOLDEN / "hf_gemma3", model, where)
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    weights.save(tmp_path / "out", model, params)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(weights.load(tmp_path / "out", model, where))} == {"bfloat16"}


@pytest.mark.parametrize("form", [hf_weights, flax_weights])
def test_a_failed_save_leaves_the_old_folder(form, source, tmp_path, monkeypatch):
    model, where = opened(source)
    params = weights.load(source, model, where)
    before = {path.name: path.read_bytes() for path in source.iterdir()}

    def full(folder, *_):
        folder.mkdir(exist_ok=True)
        raise OSError("no space left")

    monkeypatch.setattr(form, "save", full)
    with pytest.raises(OSError, match="no space"):
        weights.save(source, model, params, form="hf" if form is hf_weights else "orbax")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_folder_of_another_kind_is_not_replaced(tmp_path):
    model, where = opened(GOLDEN / "hf_gemma3")
    params = weights.load(GOLDEN / "hf_gemma3", model, where)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").write_text("dear")
    with pytest.raises(ValueError, match="is there already"):
        weights.save(tmp_path / "home", model, params)
    assert (tmp_path / "home" / "letters.txt").read_text() == "dear"


def test_a_folder_with_nothing_in_it_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        weights.config(tmp_path)


def test_orbax_without_a_config_takes_the_ids_of_every_gemma(tmp_path, monkeypatch):
    model, where = opened(GOLDEN / "hf_gemma3")
    weights.save(tmp_path / "out", model, weights.load(GOLDEN / "hf_gemma3", model, where), form="orbax")
    (tmp_path / "out" / "config.json").unlink()
    monkeypatch.setattr(config, "PUBLISHED", (lambda: model.config,))
    assert weights.config(tmp_path / "out") == model.config
    assert weights.special_ids(tmp_path / "out") == hf_config.SpecialIds(2, (1,), 0)
