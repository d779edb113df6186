"""An adapter's shapes follow from the einsums, fresh it changes nothing; applied, merged, on a mesh it is the same."""

import dataclasses
import functools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import stepwise
import tolerance
from thinkfirst.core import mesh, sharding
from thinkfirst.models import config, gemma, hf_config, layers, layout, lora

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


@functools.cache
def case(name):
    """A local and a global layer with the sizes of a golden file, random weights, a fresh and a trained adapter."""
    sizes = hf_config.read(GOLDEN / name)
    model = gemma.Model(dataclasses.replace(sizes, num_layers=2, pattern=("local", "global")))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    fresh = jax.jit(lambda: lora.init(model.adapted(), jax.random.key(1), rank=3, alpha=6.0))()
    moved = lambda path, leaf: draw(leaf) if path[-1].key == "b" else leaf  # noqa: E731
    return types.SimpleNamespace(
        model=model,
        specs=model.adapted(),
        params=jax.tree.map(draw, model.shapes()),
        fresh=fresh,
        trained=jax.tree_util.tree_map_with_path(moved, fresh),
        tokens_BT=jnp.asarray(rng.integers(0, 64, (4, 16)), jnp.int32),
        hidden=hidden(model),
    )


@pytest.fixture
def gemma2():
    return case("hf_gemma2")


def hidden(model):
    return jax.jit(
        lambda params, adapter, tokens_BT: model.hidden(
            params, tokens_BT, segment_BT=jnp.ones_like(tokens_BT), adapter=adapter
        )
    )


def test_factors_have_the_shapes_of_their_einsums():
    specs = gemma.Model(hf_config.read(GOLDEN / "hf_gemma2")).adapted()
    fresh = jax.eval_shape(lambda: lora.init(specs, jax.random.key(1), rank=3, alpha=6.0))
    by_hand = {  # width 16, 4 query heads, 2 key/value heads of 8, ff_width 24, rank 3
        "query": ((16, 3), (3, 4, 8)),
        "key": ((16, 3), (3, 2, 8)),
        "value": ((16, 3), (3, 2, 8)),
        "output": ((4, 8, 3), (3, 16)),
        "gate": ((16, 3), (3, 24)),
        "up": ((16, 3), (3, 24)),
        "down": ((24, 3), (3, 16)),
    }
    periods = {"stack_0": ("layer_0", "layer_1"), "stack_1": ("layer_0",)}
    expected = {
        (stack, layer, "attention" if i < 4 else "ff", target)
        for stack, names in periods.items()
        for layer in names
        for i, target in enumerate(by_hand)
    }
    assert set(specs) == expected
    for stack, layer, part, target in expected:
        repeats = 2 if stack == "stack_0" else 1
        factors = fresh.factors[stack][layer][part][target]
        shapes = tuple(factors[name].shape for name in ("a", "b"))
        assert shapes == tuple((repeats, *shape) for shape in by_hand[target]), target


def test_no_two_factors_are_drawn_alike(gemma2):
    drawn = [leaf for leaf in jax.tree.leaves(gemma2.fresh) if leaf.any()]
    assert len(drawn) == len(gemma2.specs)
    assert len({float(leaf.ravel()[0]) for leaf in drawn}) == len(drawn)


def test_a_fresh_adapter_changes_nothing(gemma2):
    plain_BTD, fresh_BTD, moved_BTD = (
        gemma2.hidden(gemma2.params, adapter, gemma2.tokens_BT) for adapter in (None, gemma2.fresh, gemma2.trained)
    )
    np.testing.assert_array_equal(fresh_BTD, plain_BTD)
    assert (jnp.abs(moved_BTD - plain_BTD).max(axis=(1, 2)) > 0.1).all()


def test_merged_is_applied(gemma2):
    applied_BTD = gemma2.hidden(gemma2.params, gemma2.trained, gemma2.tokens_BT)
    merged_BTD = gemma2.hidden(lora.merge(gemma2.params, gemma2.trained, gemma2.specs), None, gemma2.tokens_BT)
    tolerance.assert_close(merged_BTD, applied_BTD)


def test_decoding_uses_the_adapter_as_scoring_does(gemma2):
    tokens_PT, length_P = gemma2.tokens_BT, jnp.array([9, 3, 8, 1])
    whole_PTD = gemma2.hidden(gemma2.params, gemma2.trained, tokens_PT)
    policy = gemma2.model, gemma2.params, gemma2.trained
    rows = stepwise.Decoder(policy, tokens_PT[:, :9], length_P, new=7)
    tolerance.assert_close(rows.hidden_BD, whole_PTD[jnp.arange(4), length_P - 1])
    next_PD = rows.step(tokens_PT[jnp.arange(4), length_P])
    tolerance.assert_close(next_PD, whole_PTD[jnp.arange(4), length_P])


def test_the_scale_is_alpha_over_rank():
    """x = [1 10], W = [1 2; 3 4], A = [1 0; 2 1], B = [3 5; 1 -1], alpha 1, rank 2.

    x W = [31 42];  x A = [21 10], (x A) B = [73 95], half of it [36.5 47.5].
    """
    specs = {("up",): ("BTD,DF->BTF", (1, 2, 2))}
    adapter = lora.init(specs, jax.random.key(0), rank=2, alpha=1.0)
    factors = {"a": jnp.array([[[1.0, 0.0], [2.0, 1.0]]]), "b": jnp.array([[[3.0, 5.0], [1.0, -1.0]]])}
    adapter = dataclasses.replace(adapter, factors={"up": factors})
    weight_LDF, x_BTD = jnp.array([[[1.0, 2.0], [3.0, 4.0]]]), jnp.array([[[1.0, 10.0]]])
    up = layers.Einsum("BTD,DF->BTF", (2, 2), config.demo_gemma3(), rngs=nnx.Rngs(0))
    up.weight[...] = weight_LDF[0]
    first = jax.tree.map(lambda leaf: leaf[0], lora.scaled(adapter)["up"])
    tolerance.assert_close(up(x_BTD, first), [[[67.5, 89.5]]])
    merged = lora.merge({"up": {"weight": weight_LDF}}, adapter, specs)
    tolerance.assert_close(merged["up"]["weight"], [[[2.5, 4.5], [6.5, 8.5]]])
    tolerance.assert_close(weight_LDF, [[[1.0, 2.0], [3.0, 4.0]]])


def test_a_rank_below_one_is_refused(gemma2):
    with pytest.raises(ValueError, match="rank 0"):
        lora.init(gemma2.specs, jax.random.key(0), rank=0, alpha=1.0)


def test_gradients_are_the_adapters_and_float32_under_a_bfloat16_base(gemma2):
    model = gemma.Model(dataclasses.replace(gemma2.model.config, dtype="bfloat16"))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), gemma2.params)
    run = hidden(model)

    def loss(adapter):
        hidden_BTD = run(params, adapter, gemma2.tokens_BT)
        assert hidden_BTD.dtype == jnp.bfloat16
        return (hidden_BTD.astype(jnp.float32) ** 2).mean()

    gradient = jax.jit(jax.grad(loss))(gemma2.fresh)
    assert jax.tree.structure(gradient) == jax.tree.structure(gemma2.fresh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert leaf.dtype == jnp.float32
        assert leaf.any() == (path[-1].key == "b"), "B is zero: nothing reaches A yet, and all of B is reached"


@pytest.mark.parametrize("name", ["hf_gemma2", "hf_gemma3"])
def test_a_mesh_gives_what_one_device_gives(name):
    one = case(name)
    expected_BTD = one.hidden(one.params, one.trained, one.tokens_BT)
    devices = mesh.make(mesh.MeshConfig(data=2, fsdp=2, tensor=2))
    layout = sharding.parameters(one.model.letters(), one.params, devices)
    adapter_layout = sharding.parameters(lora.letters(one.specs, one.trained), one.trained, devices)
    found_BTD = one.hidden(
        jax.device_put(one.params, layout),
        jax.device_put(one.trained, adapter_layout),
        jax.device_put(one.tokens_BT, sharding.rows(devices)),
    )
    assert len(found_BTD.sharding.device_set) == 8
    tolerance.assert_close(found_BTD, expected_BTD)
    attention, factors = (tree["stack_0"]["layer_0"]["attention"] for tree in (layout, adapter_layout.factors))
    heads = None if one.model.config.num_kv_heads == 1 else "tensor"  # one key head cannot be split: all keep it
    assert tuple(attention["key"]["weight"].spec) == (None, "fsdp", heads, None)
    assert tuple(attention["query"]["weight"].spec) == (None, "fsdp", "tensor", None)
    assert tuple(factors["key"]["b"].spec) == (None, None, heads, None)
    assert tuple(factors["output"]["a"].spec) == (None, "tensor", None, None)


def partly(adapter, *kept):
    """The adapter on some projections only."""
    tree = {}
    for path, factors in lora.walk(adapter.factors):
        if path[-1] in kept:
            layout.put(tree, path, factors)
    return dataclasses.replace(adapter, factors=tree)


def trained(case, seed, *kept, rank=3, alpha=6.0):
    """A small adapter with random factors; `kept` are the projections it is on."""
    rng = np.random.default_rng(seed)
    fresh = lora.init(case.specs, jax.random.key(0), rank=rank, alpha=alpha)
    draw = lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    return partly(jax.tree.map(draw, fresh), *(kept or lora.TARGETS))


def test_an_adapter_may_be_on_some_projections_only(gemma2):
    adapter = partly(gemma2.trained, "query", "down")
    assert set(adapter.factors["stack_0"]["layer_0"]["attention"]) == {"query"}
    applied_BTD = gemma2.hidden(gemma2.params, adapter, gemma2.tokens_BT)
    merged = lora.merge(gemma2.params, adapter, gemma2.specs)
    tolerance.assert_close(gemma2.hidden(merged, None, gemma2.tokens_BT), applied_BTD)
    assert jnp.abs(applied_BTD - gemma2.hidden(gemma2.params, None, gemma2.tokens_BT)).max() > 0.1
    for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(gemma2.params), jax.tree.leaves(merged), strict=True
    ):
        adapted = any(key.key in ("query", "down") for key in path)
        assert (before != after).any() == adapted, path
    letters = lora.letters(gemma2.specs, adapter)
    assert jax.tree.structure(letters) == jax.tree.structure(adapter)
    assert letters.factors["stack_0"]["layer_1"]["attention"]["query"] == {"a": "LDR", "b": "LRNH"}


@pytest.mark.parametrize("name", ["hf_gemma2", "hf_gemma3"])
def test_a_chain_is_applied_merged_and_concatenated_alike(name):
    """Adapters of different projections, ranks and scales; a float32 base."""
    one = case(name)
    first = trained(one, 1, "query", "output", "up", rank=2, alpha=3.0)
    second = trained(one, 2, "query", "down", rank=3, alpha=6.0)
    chain = lora.concatenate([first, second])
    attention, ff = chain.factors["stack_0"]["layer_0"]["attention"], chain.factors["stack_0"]["layer_0"]["ff"]
    assert (attention["query"]["a"].shape[-1], attention["output"]["a"].shape[-1]) == (5, 2)
    assert (set(attention), set(ff), chain.scale) == ({"query", "output"}, {"up", "down"}, 1.0)
    in_turn = lora.merge(lora.merge(one.params, first, one.specs), second, one.specs)
    jax.tree.map(tolerance.assert_close, lora.merge(one.params, chain, one.specs), in_turn)
    in_turn_BTD = one.hidden(in_turn, None, one.tokens_BT)
    tolerance.assert_close(one.hidden(one.params, chain, one.tokens_BT), in_turn_BTD)
    second_BTD = one.hidden(lora.merge(one.params, first, one.specs), second, one.tokens_BT)
    tolerance.assert_close(second_BTD, in_turn_BTD)
    assert jnp.abs(in_turn_BTD - one.hidden(one.params, None, one.tokens_BT)).max() > 0.1


def test_the_order_of_a_chain_changes_nothing(gemma2):
    first, second = trained(gemma2, 1), trained(gemma2, 2, "gate", rank=1)
    one_way, other_way = (lora.concatenate(order) for order in ([first, second], [second, first]))
    merged = [lora.merge(gemma2.params, chain, gemma2.specs) for chain in (one_way, other_way)]
    jax.tree.map(tolerance.assert_close, *merged)


def test_a_scale_that_all_share_is_kept(gemma2):
    first, second = trained(gemma2, 1), trained(gemma2, 2)
    alone, both = lora.concatenate([first]), lora.concatenate([first, second])
    jax.tree.map(np.testing.assert_array_equal, alone, first)
    assert alone.scale == both.scale == 2.0
    query, of_second = (each.factors["stack_0"]["layer_0"]["attention"]["query"] for each in (both, second))
    np.testing.assert_array_equal(query["b"][:, 3:], of_second["b"])
    np.testing.assert_array_equal(query["a"][..., 3:], of_second["a"])


def test_a_chain_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no adapter"):
        lora.concatenate([])


@pytest.mark.parametrize(
    ("dtype", "in_turn", "at_once"), [("bfloat16", 1.0, 1 + 2**-7), ("float16", 1 + 2**-7, 1 + 2**-7)]
)
def test_a_merge_is_rounded_to_the_bases_dtype(dtype, in_turn, at_once):
    """W = 1 and twice 2**-8: bfloat16 has no number between 1 and 1 + 2**-7, and half way up rounds to the even 1."""
    specs = {("up",): ("BTD,DF->BTF", (1, 1, 1))}
    adapter = lora.Adapter({"up": {"a": jnp.full((1, 1, 1), 2.0**-8), "b": jnp.ones((1, 1, 1))}}, scale=1.0)
    base = {"up": {"weight": jnp.ones((1, 1, 1), dtype)}}
    merged = lora.merge(lora.merge(base, adapter, specs), adapter, specs)
    assert merged["up"]["weight"].dtype == dtype
    assert float(merged["up"]["weight"][0, 0, 0]) == in_turn
    assert float(lora.merge(base, lora.concatenate([adapter] * 2), specs)["up"]["weight"][0, 0, 0]) == at_once
