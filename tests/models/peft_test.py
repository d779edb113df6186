"""PEFT's folders go in and out unchanged, each factor to its place, and add to the base what they say."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import checkpoints
import peft_folder
import tolerance
from thinkfirst.models import hf_weights, lora, peft, weights

NAMES = ("hf_gemma2", "hf_gemma3")


def added(base, folder, *, scale):
    """The base's tensors with scale * B @ A added to each adapted one: `scale` is a number, or one per projection."""
    held, summed = safetensors.numpy.load_file(folder / "adapter_model.safetensors"), dict(base)
    for name in held:
        if ".lora_A." in name:
            module_name = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            of_module = scale[module_name.split(".")[-1]] if isinstance(scale, dict) else scale
            b = held[name.replace("lora_A", "lora_B")].astype(np.float32)
            text_name = "model.layers." + module_name.split("layers.")[1] + ".weight"
            summed[text_name] = summed[text_name] + np.float32(of_module) * (b @ held[name].astype(np.float32))
    return summed


def tensors_of(name):
    return safetensors.numpy.load_file(peft_folder.GOLDEN / name / hf_weights.SINGLE)


def params_of(folder, model, tensors):
    """Our tree of a base with these tensors."""
    folder.mkdir()
    safetensors.numpy.save_file(tensors, folder / hf_weights.SINGLE)
    return weights.load(folder, model, checkpoints.layout(model))


def assert_adds(model, name, folder, tmp_path, *, scale):
    """The adapter in `folder`, merged by us, is the base with scale * B @ A added in their format."""
    base = params_of(tmp_path / "base", model, tensors_of(name))
    expected = params_of(tmp_path / "summed", model, added(tensors_of(name), folder, scale=scale))
    merged = lora.merge(base, peft.load(folder, model), model.adapted())
    jax.tree.map(tolerance.assert_close, merged, expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_factor_adds_to_its_weight(name, tmp_path):
    model = peft_folder.model_of(name)
    folder = peft_folder.write(tmp_path / "adapter", peft_folder.factors(model.config))
    assert peft.load(folder, model).scale == 3.0
    assert_adds(model, name, folder, tmp_path, scale=6 / 2)


def test_factors_are_found_at_their_places(tmp_path):
    model = peft_folder.model_of("hf_gemma3")  # 8 layers: stack_0 is one period of six, stack_1 the two that are left
    held = peft_folder.factors(model.config)
    found = peft.load(peft_folder.write(tmp_path / "a", held), model).factors
    query = found["stack_1"]["layer_1"]["attention"]["query"]
    assert query["a"][0, 5, 1] == held[peft_folder.tensor(7, "q_proj", "A")][1, 5]
    assert query["b"][0, 1, 3, 2] == held[peft_folder.tensor(7, "q_proj", "B")][3 * 8 + 2, 1]
    output = found["stack_0"]["layer_5"]["attention"]["output"]
    assert output["a"][0, 3, 2, 1] == held[peft_folder.tensor(5, "o_proj", "A")][1, 3 * 8 + 2]
    assert output["b"][0, 1, 5] == held[peft_folder.tensor(5, "o_proj", "B")][5, 1]
    model = peft_folder.model_of("hf_gemma2")  # 5 layers: stack_0 is two periods of two, stack_1 the one that is left
    held = peft_folder.factors(model.config)
    found = peft.load(peft_folder.write(tmp_path / "b", held), model).factors
    down = found["stack_0"]["layer_1"]["ff"]["down"]
    np.testing.assert_array_equal(down["a"][1], held[peft_folder.tensor(3, "down_proj", "A")].T)
    np.testing.assert_array_equal(down["b"][1], held[peft_folder.tensor(3, "down_proj", "B")].T)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_names_of_a_multimodal_gemma3_are_read(prefix, tmp_path):
    model = peft_folder.model_of("hf_gemma3")
    plain = peft.load(peft_folder.write(tmp_path / "plain", peft_folder.factors(model.config)), model)
    targets = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    held = peft_folder.factors(model.config, prefix=prefix)
    folder = peft_folder.write(
        tmp_path / "multi", held, target_modules=targets, alpha_pattern={peft_folder.module(0, "q_proj", prefix): 6}
    )
    jax.tree.map(np.testing.assert_array_equal, peft.load(folder, model), plain)


@pytest.mark.parametrize(
    ("settings", "ranks", "scale"),
    [
        ({"use_rslora": True}, {}, dict.fromkeys(peft_folder.ALL, 6 / 2**0.5)),
        (
            {"rank_pattern": {"o_proj": 4, r"mlp\.(up|down)_proj": 3}},
            {"o_proj": 4, "up_proj": 3, "down_proj": 3},
            dict.fromkeys(peft_folder.ALL, 3.0) | {"o_proj": 1.5, "up_proj": 2.0, "down_proj": 2.0},
        ),
        (
            {"alpha_pattern": {"self_attn.q_proj": 1, "q_proj": 50, "k_proj": 0}},
            {},
            dict.fromkeys(peft_folder.ALL, 3.0) | {"q_proj": 0.5, "k_proj": 0.0},
        ),
    ],
    ids=["root", "ranks", "alphas"],
)
def test_scales_are_pefts(settings, ranks, scale, tmp_path):
    model = peft_folder.model_of("hf_gemma2")
    folder = peft_folder.write(tmp_path / "adapter", peft_folder.factors(model.config, ranks=ranks), **settings)
    assert_adds(model, "hf_gemma2", folder, tmp_path, scale=scale)


def test_layers_of_one_stack_may_have_ranks_and_alphas_of_their_own(tmp_path):
    model = peft_folder.model_of("hf_gemma2")
    held = peft_folder.factors(model.config)
    held |= peft_folder.factors(
        model.config, rank=5, projections=["up_proj"], layers=[2]
    )  # layers 0 and 2 share a stack
    pattern = {peft_folder.module(2, "up_proj"): 5}
    folder = peft_folder.write(
        tmp_path / "adapter", held, rank_pattern=pattern, alpha_pattern={peft_folder.module(2, "up_proj"): 15}
    )
    found = peft.load(folder, model)
    assert found.scale == 3.0
    up = found.factors["stack_0"]["layer_0"]["ff"]["up"]
    assert up["a"].shape == (2, 16, 5)
    assert not up["a"][0, :, 2:].any() and not up["b"][0, 2:].any()
    assert_adds(model, "hf_gemma2", folder, tmp_path, scale=3.0)


def test_only_what_is_adapted_is_in_the_tree(tmp_path):
    model = peft_folder.model_of("hf_gemma2")
    held = peft_folder.factors(model.config, projections=["q_proj", "v_proj"], layers=[1, 2])
    folder = peft_folder.write(
        tmp_path / "adapter", held, target_modules=["self_attn.q_proj", "v_proj"], layers_to_transform=[1, 2]
    )
    found = peft.load(folder, model)
    assert set(found.factors) == {"stack_0"}
    assert set(found.factors["stack_0"]["layer_0"]) == {"attention"}
    assert set(found.factors["stack_0"]["layer_0"]["attention"]) == {"query", "value"}
    left_out = found.factors["stack_0"]["layer_0"]["attention"]["query"]  # rows are layers 0 and 2
    assert not left_out["a"][0].any() and not left_out["b"][0].any() and left_out["b"][1].all()
    assert_adds(model, "hf_gemma2", folder, tmp_path, scale=3.0)
    peft.save(tmp_path / "out", model, found, base="some/base")
    assert_same_files(tmp_path / "out", held)
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["target_modules"] == [
        peft_folder.module(layer, projection) for projection in ("q_proj", "v_proj") for layer in (2, 1)
    ]
    jax.tree.map(np.testing.assert_array_equal, peft.load(tmp_path / "out", model), found)


@pytest.mark.parametrize(
    "targets",
    [
        "all-linear",
        r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
        None,
        [peft_folder.module(i, p) for i in range(5) for p in peft_folder.ALL],
    ],
    ids=["all-linear", "expression", "unknown", "whole names"],
)
def test_targets_may_be_said_in_several_ways(targets, tmp_path):
    model = peft_folder.model_of("hf_gemma2")
    peft.load(peft_folder.write(tmp_path / "adapter", peft_folder.factors(model.config), target_modules=targets), model)


def test_excluded_modules_are_not_missed(tmp_path):
    model = peft_folder.model_of("hf_gemma2")
    held = peft_folder.factors(model.config, projections=peft_folder.ATTENTION)
    for i, excluded in enumerate((list(peft_folder.FEED_FORWARD), r".*\.mlp\..*")):
        peft.load(peft_folder.write(tmp_path / str(i), held, exclude_modules=excluded), model)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_becomes_float32(dtype, tmp_path):
    model = peft_folder.model_of("hf_gemma2")
    held = {name: value.astype(dtype) for name, value in peft_folder.factors(model.config).items()}
    found = peft.load(peft_folder.write(tmp_path / "half", held), model)
    exact = {name: value.astype(np.float32) for name, value in held.items()}
    jax.tree.map(np.testing.assert_array_equal, found, peft.load(peft_folder.write(tmp_path / "whole", exact), model))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def assert_same_files(folder, held):
    written = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    assert written.keys() == held.keys()
    jax.tree.map(np.testing.assert_array_equal, written, dict(held))
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_peft_comes_back_bit_for_bit(name, tmp_path):
    model = peft_folder.model_of(name)
    held = peft_folder.factors(model.config)
    peft.save(
        tmp_path / "out", model, peft.load(peft_folder.write(tmp_path / "in", held), model), base="google/some-gemma"
    )
    assert_same_files(tmp_path / "out", held)
    with safetensors.safe_open(tmp_path / "out" / "adapter_model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "google/some-gemma",
        "r": 2,
        "lora_alpha": 6,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "alpha"), [(2, 6.0), (3, 16.0), (49, 1.0), (7, 0.1), (16, 1e-3)])
def test_what_is_saved_is_loaded_bit_for_bit(rank, alpha, tmp_path):
    model = peft_folder.model_of("hf_gemma3")
    adapter = lora.init(model.adapted(), jax.random.key(0), rank=rank, alpha=alpha)
    peft.save(tmp_path, model, adapter, base="b")
    again = peft.load(tmp_path, model)
    assert again.scale == adapter.scale
    jax.tree.map(np.testing.assert_array_equal, again, adapter)


def test_a_root_is_saved_as_the_nearest_alpha(tmp_path):
    model = peft_folder.model_of("hf_gemma2")
    found = peft.load(
        peft_folder.write(tmp_path / "in", peft_folder.factors(model.config, 3), r=3, use_rslora=True), model
    )
    peft.save(tmp_path / "out", model, found, base="b")
    again = peft.load(tmp_path / "out", model)
    assert again.scale == pytest.approx(found.scale, rel=1e-15)
    jax.tree.map(np.testing.assert_array_equal, again.factors, found.factors)


def test_a_chain_is_saved_as_one_adapter(tmp_path):
    """First the feed-forward layers with rank 3 and scale 2, then all projections with rank 2 and scale 3."""
    model = peft_folder.model_of("hf_gemma2")
    first = peft_folder.write(
        tmp_path / "first",
        peft_folder.factors(model.config, 3, projections=peft_folder.FEED_FORWARD, seed=1),
        r=3,
        target_modules=list(peft_folder.FEED_FORWARD),
    )
    second = peft_folder.write(tmp_path / "second", peft_folder.factors(model.config, seed=2))
    chain = lora.concatenate([peft.load(folder, model) for folder in (first, second)])
    peft.save(tmp_path / "chain", model, chain, base="b")
    said = json.loads((tmp_path / "chain" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"]) == (2, 2)
    assert said["rank_pattern"] == said["alpha_pattern"] == dict.fromkeys(peft_folder.FEED_FORWARD, 5)
    again = peft.load(tmp_path / "chain", model)
    assert again.scale == 1.0
    jax.tree.map(np.testing.assert_array_equal, again, chain)
    base = params_of(tmp_path / "base", model, tensors_of("hf_gemma2"))
    summed = added(added(tensors_of("hf_gemma2"), first, scale=2.0), second, scale=3.0)
    merged = lora.merge(base, again, model.adapted())
    jax.tree.map(tolerance.assert_close, merged, params_of(tmp_path / "summed", model, summed))


@pytest.mark.slow
def test_an_applied_folder_is_the_merged_one(tmp_path):
    model = peft_folder.model_of("hf_gemma3")
    held = {
        name: 0.1 * value
        for name, value in peft_folder.factors(model.config, projections=["o_proj", "up_proj"]).items()
    }
    folder = peft_folder.write(
        tmp_path / "adapter", held, target_modules=["o_proj", "up_proj"], alpha_pattern={"o_proj": 2}
    )
    base = params_of(tmp_path / "base", model, tensors_of("hf_gemma3"))
    summed = added(tensors_of("hf_gemma3"), folder, scale={"o_proj": 1.0, "up_proj": 3.0})
    tokens_BT = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 12)), jnp.int32)
    run = lambda params, adapter: model.hidden(  # noqa: E731
        params, tokens_BT, segment_BT=jnp.ones_like(tokens_BT), adapter=adapter
    )
    expected_BTD = run(params_of(tmp_path / "summed", model, summed), None)
    tolerance.assert_close(run(base, peft.load(folder, model)), expected_BTD)
    assert jnp.abs(run(base, None) - expected_BTD).max() > 0.1
