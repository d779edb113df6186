"""Weights go into and out of a Hugging Face folder unchanged, each to its place; what does not fit is named.

That transformers opens what `save` writes was checked once by `check` in tests/golden/make_transformers.py.
"""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from thinkfirst.models import config, gemma, hf_config, weights
from thinkfirst.models import tokenizer as tokenizer_lib

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
NAMES = ("hf_gemma2", "hf_gemma3")


def tensors(folder):
    return safetensors.numpy.load_file(pathlib.Path(folder) / weights.WEIGHTS_NAME)


@pytest.fixture
def tokenizer(tmp_path):
    file = tmp_path / "some.model"
    texts = ["How many apples are left?", "There are 12 apples and 30 pears.\n", "user\nmodel\n"] * 20
    tokenizer_lib.train(texts, file, vocab_size=300)
    return tokenizer_lib.Tokenizer(file)


@pytest.fixture
def changed(tmp_path):
    """A copy of a golden folder with some tensors changed: None removes one."""

    def make(name, **changes):
        shutil.copytree(GOLDEN / name, tmp_path / name)
        held = tensors(GOLDEN / name) | {key.replace("__", "."): value for key, value in changes.items()}
        held = {key: value for key, value in held.items() if value is not None}
        safetensors.numpy.save_file(held, tmp_path / name / weights.WEIGHTS_NAME)
        return tmp_path / name

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_loaded_bit_for_bit(name, dtype, tokenizer, tmp_path):
    model = gemma.Model(dataclasses.replace(hf_config.read(GOLDEN / name), dtype=dtype))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), model.shapes())
    weights.save(tmp_path / "out", model, params, words=tokenizer)
    again = weights.load(tmp_path / "out", model)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(again)} == {dtype}
    assert hf_config.read(tmp_path / "out") == model.config
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer.path.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_transformers_comes_back_the_same(name, tokenizer, tmp_path):
    model = gemma.Model(hf_config.read(GOLDEN / name))
    weights.save(tmp_path / "out", model, weights.load(GOLDEN / name, model), words=tokenizer)
    theirs, ours = tensors(GOLDEN / name), tensors(tmp_path / "out")
    assert ours.keys() == theirs.keys()
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (GOLDEN / name, tmp_path / "out"))
    for key in ours.keys() & theirs.keys() - {"eos_token_id"}:  # the tokenizer's, not the model's
        assert json.dumps(ours[key]) == json.dumps(theirs[key]), key  # 5 is not 5.0: transformers checks types


def test_every_weight_finds_its_layer_and_its_axes():
    folder = GOLDEN / "hf_gemma3"  # 8 layers: stack_0 is one period of six, stack_1 the two that are left
    model = gemma.Model(hf_config.read(folder))
    params, held = weights.load(folder, model), tensors(folder)
    query_DNH = params["stack_1"]["layer_1"]["attention"]["query"]["weight"][0]
    theirs = held["model.layers.7.self_attn.q_proj.weight"]  # [4 heads x 8, width 16]
    assert query_DNH[5, 3, 2] == theirs[3 * 8 + 2, 5]
    output_NHD = params["stack_0"]["layer_5"]["attention"]["output"]["weight"][0]
    assert output_NHD[3, 2, 5] == held["model.layers.5.self_attn.o_proj.weight"][5, 3 * 8 + 2]
    folder = GOLDEN / "hf_gemma2"  # 5 layers: stack_0 is two periods of two, stack_1 the one that is left
    params, held = weights.load(folder, gemma.Model(hf_config.read(folder))), tensors(folder)
    np.testing.assert_array_equal(
        params["stack_0"]["layer_1"]["ff"]["down"]["weight"][1], held["model.layers.3.mlp.down_proj.weight"].T
    )
    np.testing.assert_array_equal(
        params["stack_1"]["layer_0"]["ff_post_norm"]["scale"][0],
        held["model.layers.4.post_feedforward_layernorm.weight"],
    )


def test_weights_take_the_configured_dtype():
    wide = hf_config.read(GOLDEN / "hf_gemma3")
    params = weights.load(GOLDEN / "hf_gemma3", gemma.Model(dataclasses.replace(wide, dtype="bfloat16")))
    embedding = tensors(GOLDEN / "hf_gemma3")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(params["embedding"], embedding.astype(params["embedding"].dtype))


@pytest.mark.parametrize("size, file", [(config.gemma2_2b, "hf_gemma-2-2b"), (config.gemma3_1b, "hf_gemma-3-1b")])
def test_published_checkpoints_hold_the_tensors_we_expect(data_dir, size, file):
    published = json.loads((data_dir / "gemma" / "shapes" / f"{file}.json").read_text())
    model = gemma.Model(size())
    expected = {name: list(shape) for name, _, _, shape in weights._places(model.config, model.shapes())}
    assert expected == published
    assert weights.num_parameters(model.shapes()) == sum(int(np.prod(shape)) for shape in published.values())


def test_parameters_are_counted():
    assert weights.num_parameters(gemma.Model(config.gemma2_2b()).shapes()) == 2_614_341_888
    assert weights.num_parameters(gemma.Model(config.gemma3_1b()).shapes()) == 999_885_952


def test_all_that_does_not_fit_is_named_at_once(changed):
    folder = changed(
        "hf_gemma2",
        model__norm__weight=None,
        model__layers__4__mlp__up_proj__weight=np.zeros((16, 24), np.float32),
        lm_head__weight=np.zeros((64, 16), np.float32),
    )
    with pytest.raises(ValueError) as caught:
        weights.load(folder, gemma.Model(hf_config.read(folder)))
    for part in (
        str(folder / "model.safetensors"),
        "missing model.norm.weight",
        "unexpected lm_head.weight",
        "model.layers.4.mlp.up_proj.weight has shape (16, 24), expected (24, 16)",
    ):
        assert part in str(caught.value)


def test_the_weights_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"unexpected model\.layers\.0\.self_attn\.k_norm\.weight"):
        weights.load(GOLDEN / "hf_gemma3", gemma.Model(hf_config.read(GOLDEN / "hf_gemma2")))


def test_a_missing_or_broken_file_is_named(tmp_path):
    model = gemma.Model(hf_config.read(GOLDEN / "hf_gemma2"))
    with pytest.raises(ValueError, match=r"model\.safetensors: no such file"):
        weights.load(tmp_path, model)
    (tmp_path / weights.WEIGHTS_NAME).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        weights.load(tmp_path, model)
