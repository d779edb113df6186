"""Weights as integers and scales: by hand, within half a step, laid out on a mesh, and used without a whole copy."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.core import mesh, sharding
from thinkfirst.models import config, gemma, layout, lora, quantised, weights

DEMO = pathlib.Path(__file__).resolve().parents[2] / "launch" / "demo_base"
SPECS = ("BTD,DNH->BTNH", "BTNH,NHD->BTD", "BTF,FD->BTD")
SIZE = {"B": 2, "T": 3, "D": 64, "N": 2, "H": 32, "F": 96}


def test_int8_by_hand():
    """Each output has its own scale: 2.54 / 127 and 1.27 / 127."""
    weight_DF = jnp.array([[2.54, 0.0], [-1.0, 1.27], [0.005, -0.634]])
    found = quantised.quantise(weight_DF, "BTD,DF->BTF", "int8")
    tolerance.assert_close(found["scale"], [0.02, 0.01])
    assert found["weight"].dtype == jnp.int8
    np.testing.assert_array_equal(found["weight"], [[127, 0], [-50, 127], [0, -63]])


def test_int4_by_hand():
    """Each block of 32 neighbours along the contracted axis has its own scale."""
    weight_DF = jnp.zeros((64, 1)).at[0, 0].set(7.0).at[1, 0].set(-3.4).at[32, 0].set(0.875).at[40, 0].set(-0.25)
    found = quantised.quantise(weight_DF, "BTD,DF->BTF", "int4")
    assert found["weight"].dtype == jnp.int4
    tolerance.assert_close(found["scale"].astype(jnp.float32), [[1.0], [0.125]])
    held = np.asarray(found["weight"], np.int32)[[0, 1, 32, 40], 0]
    np.testing.assert_array_equal(held, [7, -3, 7, -2])


def drawn(spec, *leading):
    shape = (*leading, *(SIZE[letter] for letter in lora.split(spec).weight))
    return jax.random.normal(jax.random.key(len(spec)), shape)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("spec", SPECS)
def test_nothing_is_off_by_more_than_half_a_step(spec, kind):
    weight = drawn(spec)
    found = quantised.quantise(weight, spec, kind)
    assert len(quantised.letters(spec, kind)) == found["scale"].ndim
    ones = {**found, "weight": jnp.ones_like(found["weight"])}
    step = quantised.dequantise(ones["weight"], spec, found["scale"])
    gap = jnp.abs(quantised.dequantise(found["weight"], spec, found["scale"]) - weight)
    # the scale of int4 is rounded to bfloat16: the largest of a block may then lie that much beyond 7 steps
    assert (gap <= step * (0.5 + (7 * 2**-8 if kind == "int4" else 1e-4))).all()
    assert (jnp.abs(found["weight"].astype(jnp.int32)) <= quantised.LARGEST[kind]).all()


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("spec", SPECS)
def test_the_product_is_that_of_the_weights_read_back_and_so_is_its_gradient(spec, kind):
    x = jax.random.normal(jax.random.key(1), tuple(SIZE[letter] for letter in lora.split(spec).activation))
    found = quantised.quantise(drawn(spec), spec, kind)
    back = quantised.dequantise(found["weight"], spec, found["scale"])
    value, pull = jax.vjp(lambda x: quantised.product(spec, x, **found), x)
    expected, expected_pull = jax.vjp(lambda x: jnp.einsum(spec, x, back), x)
    tolerance.assert_close(value, expected, slack=4)  # sums of up to 96 products, scaled after or before
    tolerance.assert_close(pull(value)[0], expected_pull(value)[0], slack=40)  # of values up to 500


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_stack_is_quantised_layer_by_layer(kind):
    spec = "BTD,DNH->BTNH"
    stack = drawn(spec, 3)
    together = quantised.quantise(stack, spec, kind)
    for row in range(3):
        alone = quantised.quantise(stack[row], spec, kind)
        for name in alone:
            np.testing.assert_array_equal(np.asarray(together[name][row]), np.asarray(alone[name]))


def test_a_weight_of_zeros_stays_zero():
    for kind in ("int8", "int4"):
        found = quantised.quantise(jnp.zeros((32, 4)), "BTD,DF->BTF", kind)
        assert not quantised.product("BTD,DF->BTF", jnp.ones((1, 1, 32)), **found).any()


def test_a_weight_that_is_not_a_number_is_not_lost():
    for kind in ("int8", "int4"):
        found = quantised.quantise(jnp.ones((32, 4)).at[3, 2].set(jnp.nan), "BTD,DF->BTF", kind)
        assert jnp.isnan(found["scale"]).any()


def opened(kind, **axes):
    """The demo's base with weights of a kind, on a mesh of eight devices."""
    devices = mesh.make(mesh.MeshConfig(**axes))
    model = gemma.Model(dataclasses.replace(weights.config(DEMO), base_dtype=kind), devices)
    return model, weights.load(DEMO, model, sharding.parameters(model.letters(), model.shapes(), devices))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_base_is_quantised_as_it_is_read_whatever_the_mesh(kind):
    model, params = opened(kind, data=2, fsdp=2, tensor=2)
    alone = opened(kind)[1]
    stored = opened("stored")[1]
    specs = model.adapted()
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), model.shapes()
    )
    for path, (spec, _) in specs.items():
        expected = quantised.quantise(layout.at(stored, path)["weight"], spec, kind)
        for name in expected:
            for found in (params, alone):
                np.testing.assert_array_equal(
                    np.asarray(layout.at(found, path)[name]), np.asarray(expected[name]), err_msg=str(path)
                )
    np.testing.assert_array_equal(params["embedding"], stored["embedding"])
    gate = layout.at(params, ("stack_0", "layer_0", "ff", "gate"))
    assert tuple(gate["weight"].sharding.spec) == (None, "fsdp", "tensor")
    # 96 / 32 = 3 blocks do not go over two devices: every one keeps them; a channel goes where it is
    assert tuple(gate["scale"].sharding.spec) == ((None, "tensor") if kind == "int8" else (None, None, "tensor"))


def test_adapters_are_merged_into_what_was_stored():
    """Not into the integers: the base is rounded once."""
    model, _ = opened("int8")
    stored = opened("stored")[1]
    specs = model.adapted()
    fresh = lora.init(specs, jax.random.key(0), rank=2, alpha=2.0)
    adapters = [jax.tree.map(lambda leaf, part=part: leaf + part, fresh) for part in (0.01, 0.02)]
    layouts = sharding.parameters(model.letters(), model.shapes(), model.mesh)
    found = weights.load(DEMO, model, layouts, merged=adapters)
    for adapter in adapters:
        stored = lora.merge(stored, adapter, specs)
    for path, (spec, _) in specs.items():
        expected = quantised.quantise(layout.at(stored, path)["weight"], spec, "int8")
        held = layout.at(found, path)
        apart = np.asarray(held["weight"], np.int32) - np.asarray(expected["weight"], np.int32)
        assert np.abs(apart).max() <= 1 and (apart != 0).mean() < 1e-3  # sums in another order may round the other way
        tolerance.assert_close(held["scale"], expected["scale"])


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_model_of_integers_is_the_model_of_the_weights_read_back(kind):
    model, params = opened(kind)
    back = jax.tree.map(lambda x: x, params)
    for path, (spec, _) in model.adapted().items():
        owner = layout.at(back, path)
        read = [quantised.dequantise(w, spec, s) for w, s in zip(owner["weight"], owner.pop("scale"), strict=True)]
        owner["weight"] = jnp.stack(read)
    tokens_BT = jnp.arange(40, dtype=jnp.int32).reshape(8, 5) + 5
    run = lambda model, params: model.hidden(params, tokens_BT, segment_BT=jnp.ones_like(tokens_BT))  # noqa: E731
    found, expected = jax.jit(run, static_argnums=0)(model, params), jax.jit(run, static_argnums=0)(model.stored, back)
    tolerance.assert_close(found, expected, slack=20)  # four layers deep


def test_no_whole_copy_of_the_weights_is_made():
    """What a gradient step has beside its arguments does not grow with the number of layers, as a copy would."""

    def temporary(num_layers):
        shape = dataclasses.replace(
            config.demo_gemma3(), base_dtype="int8", num_layers=num_layers, width=256, ff_width=2048
        )
        model = gemma.Model(shape)
        adapter = jax.eval_shape(lambda: lora.init(model.adapted(), jax.random.key(0), rank=1, alpha=1.0))
        tokens_BT = jax.ShapeDtypeStruct((1, 8), jnp.int32)

        def total(adapter, params, tokens_BT):
            segment_BT = jnp.ones_like(tokens_BT)
            return model.hidden(params, tokens_BT, segment_BT=segment_BT, adapter=adapter, remat="full").sum()

        step = jax.jit(jax.grad(total)).lower(adapter, model.shapes(), tokens_BT).compile()
        return step.memory_analysis().temp_size_in_bytes

    one_layer = 4 * 3 * 256 * 2048  # a float32 copy of its feed-forward
    assert temporary(16) - temporary(4) < one_layer
