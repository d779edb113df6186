"""Hugging Face folders come in slice by slice and go out unchanged; what does not fit is named.

That transformers opens what `save` writes is checked by `make parity`.
"""

import dataclasses
import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from thinkfirst.core import mesh, sharding
from thinkfirst.models import config, gemma, hf_config, hf_weights, layout, tensor_file, weights

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
NAMES = ("hf_gemma2", "hf_gemma3")
VISION = {"vision_tower.x": np.zeros(3, np.float32), "multi_modal_projector.y": np.zeros((2, 2), np.int64)}


def opened(folder, *, data=1, fsdp=1, tensor=1):
    """(model, where its parameters go) on a mesh of the first devices."""
    model = gemma.Model(hf_config.read(folder))
    devices = jax.devices()[: data * fsdp * tensor]
    grid = mesh.make(mesh.MeshConfig(data=data, fsdp=fsdp, tensor=tensor), devices)
    return model, sharding.parameters(model.letters(), model.shapes(), grid)


def load(folder, **axes):
    return weights.load(folder, *opened(folder, **axes))


def tensors(folder):
    files = sorted(pathlib.Path(folder).glob("*.safetensors"))
    return {name: value for file in files for name, value in safetensors.numpy.load_file(file).items()}


@pytest.fixture
def changed(tmp_path):
    """A copy of a golden folder with its tensors passed through a function."""

    def make(name, change):
        shutil.copytree(GOLDEN / name, tmp_path / name)
        safetensors.numpy.save_file(change(tensors(GOLDEN / name)), tmp_path / name / hf_weights.SINGLE)
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_finds_its_layer_and_its_axes(name):
    model, _ = opened(GOLDEN / name)
    params, held, size = load(GOLDEN / name), tensors(GOLDEN / name), layout.sizes(model.config)
    for leaf in layout.huggingface(model.config, model.letters()):
        array = np.asarray(layout.at(params, leaf.path))
        for row, stored in enumerate(leaf.stored):
            ours = array[row] if leaf.stacked else array
            np.testing.assert_array_equal(
                ours, layout.to_ours(held[stored.name], stored.axes, leaf.letters, size), err_msg=stored.name
            )


def test_places_checked_by_hand():
    params, held = load(GOLDEN / "hf_gemma3"), tensors(GOLDEN / "hf_gemma3")  # one period of six layers, two are left
    query_DNH = params["stack_1"]["layer_1"]["attention"]["query"]["weight"][0]
    assert query_DNH[5, 3, 2] == held["model.layers.7.self_attn.q_proj.weight"][3 * 8 + 2, 5]
    output_NHD = params["stack_0"]["layer_5"]["attention"]["output"]["weight"][0]
    assert output_NHD[3, 2, 5] == held["model.layers.5.self_attn.o_proj.weight"][5, 3 * 8 + 2]
    params, held = load(GOLDEN / "hf_gemma2"), tensors(GOLDEN / "hf_gemma2")  # two periods of two layers, one is left
    down_FD = params["stack_0"]["layer_1"]["ff"]["down"]["weight"][1]
    np.testing.assert_array_equal(down_FD, held["model.layers.3.mlp.down_proj.weight"].T)
    norm_D = params["stack_1"]["layer_0"]["ff_post_norm"]["scale"][0]
    np.testing.assert_array_equal(norm_D, held["model.layers.4.post_feedforward_layernorm.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}, {"tensor": 4}])
@pytest.mark.parametrize("name", NAMES)
def test_every_mesh_holds_the_same_weights(name, axes):
    _, layout_of = opened(GOLDEN / name, **axes)
    whole, spread = load(GOLDEN / name), load(GOLDEN / name, **axes)
    jax.tree.map(np.testing.assert_array_equal, spread, whole)
    jax.tree.map(lambda array, expected: array.sharding == expected or pytest.fail(str(expected)), spread, layout_of)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_comes_back_byte_for_byte(name, dtype, changed, tmp_path):
    folder = changed(name, lambda held: {key: value.astype(dtype) for key, value in held.items()})
    written = [safetensors.numpy.load_file(folder / hf_weights.SINGLE), load(folder)]
    safetensors.numpy.save_file(written[0], folder / hf_weights.SINGLE, metadata={"format": "pt"})
    assert {leaf.dtype for leaf in jax.tree.leaves(written[1])} == {np.dtype(dtype)}
    out = tmp_path / "out"
    out.mkdir()
    hf_weights.save(out, opened(folder)[0], written[1])
    assert (out / hf_weights.SINGLE).read_bytes() == (folder / hf_weights.SINGLE).read_bytes()


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_names_of_a_multimodal_checkpoint(prefix, changed, capsys):
    renamed = lambda held: {prefix + key.removeprefix("model."): value for key, value in held.items()} | VISION  # noqa: E731
    folder = changed("hf_gemma3", renamed)
    jax.tree.map(np.testing.assert_array_equal, load(folder), load(GOLDEN / "hf_gemma3"))
    assert "2 tensors of the vision tower are not read" in capsys.readouterr().out


def test_several_files_and_their_index(tmp_path):
    folder = GOLDEN / "hf_gemma2"
    model, _ = opened(folder)
    params = load(folder)
    shutil.copytree(folder, tmp_path / "out", ignore=shutil.ignore_patterns("*.safetensors"))
    hf_weights.save(tmp_path / "out", model, params, shard_bytes=10_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [hf_weights.shard_name(number, len(files)) for number in range(1, len(files) + 1)]
    assert len(files) > 2
    assert all((tmp_path / "out" / name).stat().st_size < 10_000 + 4_000 for name in files)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "out"), params)


@pytest.mark.parametrize(
    "make, dtype, name",
    [
        (config.gemma3_270m, "bfloat16", "gemma-3-270m-it"),
        (config.gemma3_1b, "bfloat16", "gemma-3-1b-it"),
        (config.gemma2_2b, "bfloat16", "gemma-2-2b-it"),
        (config.gemma2_2b, "float32", "gemma-2-2b"),
    ],
)
def test_our_headers_are_those_of_the_published_files(data_dir, make, dtype, name):
    model = gemma.Model(dataclasses.replace(make(), dtype=dtype))
    ours = hf_weights.plan(hf_weights.made(model, model.shapes()), hf_weights.SHARD_BYTES)
    published = sorted((data_dir / "gemma/shapes/headers").glob(f"{name}__*.header"))
    assert len(ours) == len(published) > 0
    for shard, file in zip(ours, published, strict=True):
        assert tensor_file.header(sorted(shard, key=lambda tensor: tensor.name)) == file.read_bytes()


def test_our_index_is_the_published_one(data_dir):
    model = gemma.Model(config.gemma2_2b())
    shards = hf_weights.plan(hf_weights.made(model, model.shapes()), hf_weights.SHARD_BYTES)
    published = json.loads((data_dir / "gemma/configs/gemma-2-2b-it.model.safetensors.index.json").read_text())
    assert json.loads(hf_weights.index_text(shards)) == published


def without(key):
    return lambda held: {name: value for name, value in held.items() if name != key}


@pytest.mark.parametrize(
    "change, message",
    [
        (without("model.norm.weight"), "missing model.norm.weight"),
        (lambda held: held | {"lm_head.weight": np.zeros((64, 16), np.float32)}, "unexpected lm_head.weight"),
        (
            lambda held: held | {"model.layers.4.mlp.up_proj.weight": np.zeros((16, 24), np.float32)},
            r"model.layers.4.mlp.up_proj.weight has shape \(16, 24\), expected \(24, 16\)",
        ),
        (
            lambda held: held | {"model.norm.weight": np.zeros(16, np.int64)},
            "model.norm.weight is I64, expected one of BF16, F16, F32",
        ),
        (
            lambda held: held | {"model.norm.weight": np.zeros(16, np.float16)},
            "model.norm.weight is F16, the others are F32",
        ),
        (lambda held: {f"x.{name}": value for name, value in held.items()}, r"missing .*; and \d+ more"),
    ],
)
def test_what_does_not_fit_is_named(changed, change, message):
    folder = changed("hf_gemma2", change)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_the_weights_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"unexpected model\.layers\.0\.self_attn\.k_norm\.weight"):
        weights.load(GOLDEN / "hf_gemma3", *opened(GOLDEN / "hf_gemma2"))


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("pytorch_model.bin", b"\x80\x04", "pytorch_model.bin: a pickle, which runs code"),
        ("README.md", b"", "model.safetensors: no such file"),
        (hf_weights.INDEX, b"{}", "not an index"),
        (hf_weights.INDEX, b"[]", "not an index"),
        (hf_weights.INDEX, b"{oops", "not an index"),
        (hf_weights.INDEX, b'{"weight_map": {}}', "weight_map must map tensors to files"),
        (hf_weights.INDEX, b'{"weight_map": {"a": "../secret"}}', "weight_map must map tensors to files"),
        (hf_weights.INDEX, b'{"weight_map": {"a": 3}}', "weight_map must map tensors to files"),
        (hf_weights.INDEX, b'{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: no such file"),
    ],
)
def test_other_folders_are_refused(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        hf_weights.Tensors(tmp_path)


def test_an_index_that_lies_is_refused(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(1), "b": np.zeros(1)}, tmp_path / "one.safetensors")
    (tmp_path / hf_weights.INDEX).write_text('{"weight_map": {"a": "one.safetensors", "c": "one.safetensors"}}')
    with pytest.raises(ValueError, match=r"one.safetensors do not agree on b, c"):
        hf_weights.Tensors(tmp_path)


def test_parameters_are_counted():
    assert weights.num_parameters(gemma.Model(config.gemma2_2b()).shapes()) == 2_614_341_888
    assert weights.num_parameters(gemma.Model(config.gemma3_1b()).shapes()) == 999_885_952
