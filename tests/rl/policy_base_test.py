"""A policy over a base of integers: it merges into what was stored, and that is what it exports."""

import dataclasses

import jax
import numpy as np
import pytest

import tolerance
from thinkfirst.core import mesh
from thinkfirst.launch import recipes
from thinkfirst.models import layout, lora, quantised
from thinkfirst.rl import loading

SPEC_OF = {"gate": "BTD,DF->BTF", "output": "BTNH,NHD->BTD"}
GATE = ("stack_0", "layer_1", "ff", "gate")


def opened(base_dtype, adapter=None):
    """The demo's base on one device, with an adapter to be merged."""
    devices = mesh.make(mesh.MeshConfig(), jax.devices()[:1])
    subject = loading.from_folder(recipes.DEMO_BASE, devices, base_dtype=base_dtype)
    if adapter is not None:
        subject.adapter = subject.laid_out(adapter)
    return subject


@pytest.fixture(scope="module")
def adapter():
    """Two projections of rank 2."""
    specs, rng, tree = opened("stored").model.adapted(), np.random.default_rng(0), {}
    for path, factors in lora.walk(lora.init(specs, jax.random.key(0), rank=2, alpha=2.0).factors):
        if path[-1] in SPEC_OF:
            draw = lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)  # noqa: E731
            layout.put(tree, path, jax.tree.map(draw, factors))
    return lora.Adapter(tree, scale=1.0)


@pytest.mark.slow
def test_merging_twice_rounds_the_base_once(adapter):
    plain, whole = opened("stored", adapter), opened("int4", adapter)
    for subject in (plain, whole):
        subject.merge()
        subject.adapter = subject.laid_out(adapter)
        subject.merge()
    model, params = whole.stored()
    assert model.config == plain.model.config
    jax.tree.map(tolerance.assert_close, jax.device_get(params), jax.device_get(plain.params))
    held = layout.at(whole.params, GATE)
    expected = quantised.quantise(layout.at(params, GATE)["weight"], SPEC_OF["gate"], "int4")
    np.testing.assert_array_equal(np.asarray(held["weight"], np.int32), np.asarray(expected["weight"], np.int32))
    assert len(whole.merged) == 2 and whole.adapter is None


def test_a_base_that_is_trained_is_not_of_integers():
    recipe = recipes.demo_base()
    with pytest.raises(ValueError, match="pre-training needs base_dtype=stored; int8 is not trained"):
        dataclasses.replace(recipe, base_dtype="int8")


@pytest.mark.slow
def test_a_random_base_of_integers_is_drawn_as_it_would_be_stored():
    devices = mesh.make(mesh.MeshConfig(), jax.devices()[:1])
    shape = dataclasses.replace(opened("stored").model.config, num_layers=2, base_dtype="int8")
    model = loading.gemma.Model(shape, devices)
    found, drawn = loading._drawn(3, model), model.stored.init(3)
    expected = quantised.quantise(layout.at(drawn, GATE)["weight"], SPEC_OF["gate"], "int8")
    np.testing.assert_array_equal(np.asarray(layout.at(found, GATE)["weight"]), np.asarray(expected["weight"]))
    np.testing.assert_array_equal(found["embedding"], drawn["embedding"])
