"""The Flax layout of Kaggle and gs://gemma-data goes out and comes in again, in every way it is written."""

import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from thinkfirst.core import mesh, sharding
from thinkfirst.models import config, flax_weights, gemma, hf_config, layout, weights

pytestmark = pytest.mark.slow
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
NAMES = ("hf_gemma2", "hf_gemma3")
GATING = "transformer/layer_0/mlp/gating_einsum"


def setting(shape, *, fsdp=2, tensor=2):
    """(model, where its parameters go, random parameters there)."""
    model = gemma.Model(shape)
    grid = mesh.make(mesh.MeshConfig(data=1, fsdp=fsdp, tensor=tensor), jax.devices()[: fsdp * tensor])
    where = sharding.parameters(model.letters(), model.shapes(), grid)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), model.shapes())
    return model, where, jax.device_put(drawn, where)


def tiny(name, **changes):
    """Two periods of two layers and one that is left."""
    few = {"num_layers": 5, "pattern": ("local", "global")}
    return dataclasses.replace(hf_config.read(GOLDEN / name), **(few | changes))


def stored(model, params, *, transposed=True):
    """The tree that `save` should write, by plain numpy."""
    tree = {}
    for leaf in layout.flax(model.config, model.letters(), transposed_gating=transposed):
        array = np.asarray(layout.at(params, leaf.path))
        for row, piece in enumerate(leaf.stored):
            owner, name = piece.name.rsplit(".", 1)
            tensor = layout.to_theirs(array[row] if leaf.stacked else array, piece.axes, leaf.letters)
            if piece.part is None:
                tree.setdefault(owner, {})[name] = tensor
            else:
                tree.setdefault(owner, {}).setdefault(name, [None, None])[piece.part] = tensor
    return {
        owner: {name: np.stack(x) if isinstance(x, list) else x for name, x in held.items()}
        for owner, held in tree.items()
    }


def read_back(folder):
    """What is in a folder, as numpy arrays."""
    with ocp.PyTreeCheckpointer() as reader:
        described = reader.metadata(folder).item_metadata.tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described)
        return reader.restore(folder, restore_args=how)


def written(folder, tree):
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(folder, tree)
    return folder


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    jax.tree.map(lambda a, b: (a.dtype, a.sharding) == (b.dtype, b.sharding) or pytest.fail(str(a)), ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name, dtype, tmp_path):
    model, where, params = setting(tiny(name, dtype=dtype))
    flax_weights.save(tmp_path / "out", model, params)
    assert flax_weights.is_one(tmp_path / "out") and not flax_weights.is_one(GOLDEN / name)
    same(weights.load(tmp_path / "out", model, where), params)
    jax.tree.map(np.testing.assert_array_equal, read_back(tmp_path / "out"), stored(model, params))


def nested(tree):
    """{"layer_0": {"attn": {...}}} instead of {"transformer/layer_0/attn/...": ...}."""
    found = {}
    for owner, held in tree.items():
        layout.put(found, tuple(owner.split("/")[1:]), held)
    return found


def bare(tree):
    """Without the {"w": ...} around the weights of the feed-forward layer."""
    return {owner: held["w"] if "/mlp/" in owner else held for owner, held in tree.items()}


@pytest.mark.parametrize("way", [nested, bare, lambda tree: {"params": nested(bare(tree))}])
def test_the_ways_in_which_it_is_written(way, tmp_path):
    model, where, params = setting(tiny("hf_gemma3"))
    same(weights.load(written(tmp_path / "out", way(stored(model, params))), model, where), params)


def test_gating_that_is_not_transposed(tmp_path):
    model, where, params = setting(tiny("hf_gemma2"))
    tree = stored(model, params, transposed=False)
    assert tree[GATING]["w"].shape == (2, 16, 24)
    same(weights.load(written(tmp_path / "out", tree), model, where), params)


@pytest.mark.parametrize("ours, theirs", sorted(flax_weights.PUBLISHED_ROWS.items()))
def test_rows_of_a_published_embedding(ours, theirs, tmp_path):
    few = {"num_layers": 1, "width": 2, "ff_width": 4, "num_heads": 1, "num_kv_heads": 1, "head_dim": 2}
    model, where, params = setting(tiny("hf_gemma2", vocab_size=ours, **few), tensor=1)
    flax_weights.save(tmp_path / "out", model, params)
    table = read_back(tmp_path / "out")["transformer/embedder"]["input_embedding"]
    assert table.shape == (theirs, 2)
    both = min(ours, theirs)
    np.testing.assert_array_equal(table[:both], np.asarray(params["embedding"])[:both])
    assert not table[both:].any()
    again = weights.load(tmp_path / "out", model, where)["embedding"]
    np.testing.assert_array_equal(again[:both], params["embedding"][:both])
    assert again.shape == (ours, 2) and not np.asarray(again[both:]).any()


def test_the_published_2b_is_not_transposed_when_written():
    small = dataclasses.replace(config.gemma2_2b(), vocab_size=8)
    model = gemma.Model(small)
    shapes = jax.eval_shape(lambda params: flax_weights.tree(model, params), model.shapes())
    assert shapes[GATING]["w"].shape == (2, 2304, 9216)


def test_a_folder_without_a_config_is_known_by_its_shapes(tmp_path, monkeypatch):
    model, _, params = setting(tiny("hf_gemma3"))
    flax_weights.save(tmp_path / "out", model, params)
    with pytest.raises(ValueError, match=r"no config.json, and its shapes are not those of gemma2_2b, "):
        flax_weights.config(tmp_path / "out")
    monkeypatch.setattr(config, "PUBLISHED", (config.gemma2_2b, lambda: model.config))
    assert flax_weights.config(tmp_path / "out") == model.config


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tree: tree.pop("transformer/final_norm"), "missing transformer/final_norm.scale"),
        (lambda tree: tree.update({"transformer/layer_9/mlp/linear": {"w": jnp.ones(3)}}), "unexpected .*layer_9"),
        (lambda tree: tree[GATING].update(w=jnp.ones((2, 16, 16))), r"gating_einsum.w has shape \(2, 16, 16\)"),
        (lambda tree: tree[GATING].update(w=np.ones((2, 24, 16), np.int32)), "gating_einsum.w is int32"),
        (
            lambda tree: tree[GATING].update(w=np.ones((2, 24, 16), ml_dtypes.bfloat16)),
            "gating_einsum.w is bfloat16, the others are float32",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    model, where, params = setting(tiny("hf_gemma3"))
    tree = stored(model, params)
    change(tree)
    with pytest.raises(ValueError, match=message):
        weights.load(written(tmp_path / "out", tree), model, where)


def test_vision_is_passed_over(tmp_path):
    model, where, params = setting(tiny("hf_gemma3"))
    tree = stored(model, params)
    tree["transformer/embedder/mm_input_projection"] = {"w": jnp.ones(2)}
    tree["SigLiPFromPatches_0/siglip_encoder/x"] = {"w": jnp.ones(3)}
    same(weights.load(written(tmp_path / "out", tree), model, where), params)


def test_a_broken_checkpoint_is_named(tmp_path):
    model, where, params = setting(tiny("hf_gemma3"))
    flax_weights.save(tmp_path / "out", model, params)
    (tmp_path / "out" / "_METADATA").write_text("{oops")
    with pytest.raises(ValueError, match="not an Orbax checkpoint that can be read"):
        weights.load(tmp_path / "out", model, where)
    shutil.rmtree(tmp_path / "out" / "d")
