"""PEFT folders in a run: merged into its base in order, or what a stage starts from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.core import config as config_lib
from thinkfirst.core import mesh, runtime
from thinkfirst.launch import recipes
from thinkfirst.models import config, gemma, layout, lora, peft
from thinkfirst.rl import loading, optimizer, pipeline, stages
from thinkfirst.rl.data import source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # what trains compiles for eight devices

MODEL = gemma.Model(config.demo_gemma3())


def recipe(*assignments):
    """One step of SFT from the demo's base, with some settings as on the command line."""
    rate = optimizer.OptimizerConfig(learning_rate=1e-2)
    plain = stages.RunConfig(
        recipe="toy",
        checkpoint=str(recipes.DEMO_BASE),
        data=source.DataConfig(held_out=3),
        mesh=mesh.MeshConfig(data=2, fsdp=2, tensor=2),
        max_prompt_tokens=64,
        stages=(stages.Sft(rate, steps=1, batch_size=8, num_tokens=128), stages.Merge()),
    )
    return config_lib.override(plain, assignments)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two adapters of different projections, ranks and scales."""
    root, rng = tmp_path_factory.mktemp("adapters"), np.random.default_rng(0)
    for name, kept, rank in (("first", ("query", "up"), 2), ("second", ("query", "value"), 3)):
        tree = {}
        for path, factors in lora.walk(lora.init(MODEL.adapted(), jax.random.key(0), rank=rank, alpha=6.0).factors):
            if path[-1] in kept:
                drawn = {key: rng.standard_normal(leaf.shape).astype(np.float32) for key, leaf in factors.items()}
                layout.put(tree, path, drawn)
        peft.save(root / name, MODEL, lora.Adapter(tree, scale=6.0 / rank), base="demo")
    return root / "first", root / "second"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return loading.from_config(recipe(), tmp_path_factory.mktemp("plain"))


def test_folders_are_set_on_the_command_line():
    changed = recipe("adapters=here,there/too", "stages.sft.lora.start=some/folder")
    assert changed.adapters == ("here", "there/too")
    assert changed.stages[0].lora == stages.LoraConfig(start="some/folder")
    assert (recipe().adapters, recipe().stages[0].lora.start) == ((), "")


@pytest.mark.long
def test_the_adapters_of_a_run_are_merged_into_its_base(plain, folders, tmp_path):
    first, second = folders
    subject = loading.from_config(recipe(f"adapters={first},{second}"), tmp_path)
    expected = plain.params
    for folder in folders:
        expected = lora.merge(expected, jax.tree.map(jnp.asarray, peft.load(folder, MODEL)), MODEL.adapted())
    jax.tree.map(tolerance.assert_close, jax.device_get(subject.params), jax.device_get(expected))
    assert jax.tree.map(lambda leaf: leaf.sharding, subject.params) == jax.tree.map(
        lambda leaf: leaf.sharding, plain.params
    )
    before, after = (each.params["stack_0"]["layer_1"]["attention"] for each in (plain, subject))
    assert subject.adapter is None
    for name in ("query", "value"):
        assert jnp.abs(before[name]["weight"] - after[name]["weight"]).max() > 1
    np.testing.assert_array_equal(before["key"]["weight"], after["key"]["weight"])


def test_a_stage_starts_from_a_folder_laid_out_as_a_fresh_adapter(plain, folders):
    start = stages.LoraConfig(rank=2, alpha=99.0, start=str(folders[1]))
    started = plain.fresh_adapter(start, jax.random.key(0))
    assert started.scale == 2.0
    jax.tree.map(np.testing.assert_array_equal, started, peft.load(folders[1], MODEL))
    query, value = (started.factors["stack_0"]["layer_0"]["attention"][name] for name in ("query", "value"))
    assert tuple(query["a"].sharding.spec) == (None, "fsdp", None)
    assert tuple(value["b"].sharding.spec) == (None, None, "tensor", None)
    fresh = plain.fresh_adapter(dataclasses.replace(start, rank=3, start=""), jax.random.key(0))
    assert fresh.factors["stack_0"]["layer_0"]["attention"]["query"]["a"].sharding == query["a"].sharding


def test_adapters_need_the_base_they_are_of(folders, tmp_path):
    with pytest.raises(ValueError, match=r"adapters=.*first are of a base: set checkpoint=FOLDER"):
        made = recipe(f"adapters={folders[0]}", "checkpoint=", "architecture=demo_gemma3")
        loading.from_config(dataclasses.replace(made, tokenizer=str(recipes.DEMO_BASE)), tmp_path)


def test_a_folder_that_is_not_there_is_named(plain, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere/adapter_config\.json: no such file"):
        loading.from_config(recipe("adapters=nowhere"), tmp_path)
    with pytest.raises(ValueError, match=r"nowhere/adapter_config\.json: no such file"):
        plain.fresh_adapter(stages.LoraConfig(start="nowhere"), jax.random.key(0))


@pytest.mark.long
def test_a_run_trains_on_from_a_folder_and_resumes(folders, tmp_path):
    """The first adapter in the base, the second trained on: it moves, on its own projections, and is read back."""
    settings = recipe(f"adapters={folders[0]}", f"stages.sft.lora.start={folders[1]}")
    before = peft.load(folders[1], MODEL)
    results = pipeline.run(dataclasses.replace(settings, stages=settings.stages[:1]), tmp_path, runtime.Budget())
    assert [stage["steps"] for stage in results["stages"]] == [1]
    after = pipeline.restore(dataclasses.replace(settings, stages=settings.stages[:1]), tmp_path).adapter.factors
    before = before.factors
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert 0 < np.abs(np.asarray(new) - old).max() < 0.02
