"""Position p lives in slot p mod S: filled, appended to, read and forked, worked by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from thinkfirst.kernels.decode_attention import reference
from thinkfirst.models import config, kv_cache

NEVER = -1.0


def ring(slots, *, periods=2, rows=2):
    empty = jnp.full((periods, rows, slots, 1, 2), NEVER)
    return kv_cache.Layer(empty, empty)


def tokens(length, rows=2):
    """Keys that are their position, 100 more in the second row; values are the keys' negatives."""
    place_BT = jnp.arange(length, dtype=jnp.float32) + 100 * jnp.arange(rows, dtype=jnp.float32)[:, None]
    key_BTKH = jnp.broadcast_to(place_BT[:, :, None, None], (rows, length, 1, 2))
    return key_BTKH, -key_BTKH


def held(filled, period=0):
    """The position in each slot, [rows][slots]; keys and values must tell the same."""
    key_BSKH, value_BSKH = filled.key_LBSKH[period], filled.value_LBSKH[period]
    written = key_BSKH != NEVER
    np.testing.assert_array_equal(jnp.where(written, -key_BSKH, NEVER), value_BSKH)
    return key_BSKH[:, :, 0, 0].tolist()


TINY = dataclasses.replace(config.demo_gemma3(), window=8, num_layers=5)


def slots(tree):
    return {
        stack: {name: layer.key_LBSKH.shape[:3] for name, layer in layers.items()} for stack, layers in tree.items()
    }


def test_rows_have_the_window_of_local_layers_and_what_is_new_of_global_ones():
    rooms = kv_cache.Rooms(prompt=20, new=30)
    own, held, filled = (make(TINY, 3, rooms) for make in (kv_cache.own, kv_cache.resident, kv_cache.prompts))
    assert slots(own) == {"stack_0": {"layer_0": (2, 3, 8), "layer_1": (2, 3, 30)}, "stack_1": {"layer_0": (1, 3, 8)}}
    assert slots(held) == {"stack_0": {"layer_1": (2, 3, 20)}, "stack_1": {}}
    assert slots(filled)["stack_0"] == {"layer_0": (2, 3, 8), "layer_1": (2, 3, 20)}
    assert own["stack_0"]["layer_0"].value_LBSKH.shape[3:] == (TINY.num_kv_heads, TINY.head_dim)


def test_a_window_that_nothing_leaves_is_no_ring():
    rooms = kv_cache.Rooms(prompt=5, new=3)
    assert slots(kv_cache.own(TINY, 1, rooms))["stack_0"] == {"layer_0": (2, 1, 3), "layer_1": (2, 1, 3)}
    assert slots(kv_cache.resident(TINY, 1, rooms))["stack_1"] == {"layer_0": (1, 1, 5)}


def test_fill_keeps_the_last_positions_of_each_row():
    filled = kv_cache.fill(ring(4), jnp.int32(1), *tokens(7), jnp.array([6, 4]))
    assert held(filled, period=1) == [[4, 5, 2, 3], [100, 101, 102, 103]]
    assert held(filled, period=0) == [[NEVER] * 4] * 2


def test_fill_with_less_than_a_ring_starts_at_slot_zero():
    filled = kv_cache.fill(ring(5), jnp.int32(0), *tokens(3), jnp.array([3, 1]))
    first, second = held(filled)
    assert first[:3] == [0, 1, 2] and second[:1] == [100]
    seen_BS = reference.visible(jnp.array([2, 0]), 5, 0)  # the slots not yet reached hold anything, and are not seen
    np.testing.assert_array_equal(seen_BS, [[True, True, True, False, False], [True, False, False, False, False]])


def test_slots_hold_what_decoding_believes_they_hold():
    key_BTKH, value_BTKH = tokens(14, rows=1)
    one = ring(5, rows=1)
    for position in range(14):
        position_B, at = jnp.array([position]), (key_BTKH[:, position], value_BTKH[:, position])
        one = kv_cache.Layer(*reference.written(at, one.pair, jnp.int32(0), position_B))
        believed_BS = reference.held_position(position_B, 5)
        np.testing.assert_array_equal(np.maximum(believed_BS, NEVER), held(one))


def test_a_row_begins_with_its_prompts_ring_and_leaves_the_others():
    filled = kv_cache.fill(ring(3, periods=1), jnp.int32(0), *tokens(3), jnp.array([3, 3]))
    rows, whole = ring(4, periods=1, rows=3), ring(2, periods=1, rows=3)
    begun = kv_cache.begin(
        {"stack_0": {"layer_0": rows, "layer_1": whole}},
        {"stack_0": {"layer_0": filled, "layer_1": filled}},
        {"stack_0": {"layer_1": filled}},
        row=jnp.int32(1),
        prompt=jnp.int32(1),
    )["stack_0"]
    assert held(begun["layer_0"]) == [[NEVER] * 4, [100, 101, 102, NEVER], [NEVER] * 4]
    assert held(begun["layer_1"]) == [[NEVER] * 2] * 3


def test_resident_prompts_take_the_places_given():
    filled = kv_cache.fill(ring(3, periods=1), jnp.int32(0), *tokens(3), jnp.array([3, 3]))
    tree = {"stack_0": {"layer_1": ring(3, periods=1, rows=4)}, "stack_1": {}}
    kept = kv_cache.keep(tree, {"stack_0": {"layer_1": filled}, "stack_1": {}}, jnp.array([3, 0]))
    assert held(kept["stack_0"]["layer_1"]) == [[100, 101, 102], [NEVER] * 3, [NEVER] * 3, [0, 1, 2]]
