"""Position p lives in slot p mod S: filled, appended to, read and forked, worked by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from thinkfirst.kernels.decode_attention import reference
from thinkfirst.models import config, kv_cache

NEVER = -1.0


def ring(slots, *, periods=2, rows=2):
    empty = jnp.full((periods, rows, slots, 1, 2), NEVER)
    return kv_cache.Ring(empty, empty)


def tokens(length, rows=2):
    """Keys that are their position, 100 more in the second row; values are the keys' negatives."""
    place_BT = jnp.arange(length, dtype=jnp.float32) + 100 * jnp.arange(rows, dtype=jnp.float32)[:, None]
    key_BTKH = jnp.broadcast_to(place_BT[:, :, None, None], (rows, length, 1, 2))
    return key_BTKH, -key_BTKH


def held(filled, period=0):
    """The position in each slot, [rows][slots]; keys and values must tell the same."""
    key_BSKH, value_BSKH = kv_cache.layer(filled, jnp.int32(period))
    written = key_BSKH != NEVER
    np.testing.assert_array_equal(jnp.where(written, -key_BSKH, NEVER), value_BSKH)
    return key_BSKH[:, :, 0, 0].tolist()


def test_local_layers_get_the_window_and_global_ones_the_whole_length():
    tiny = dataclasses.replace(config.demo_gemma3(), window=8, num_layers=5)
    assert [kv_cache.num_slots(tiny, kind, 20) for kind in ("local", "global")] == [8, 20]
    assert kv_cache.num_slots(tiny, "local", 5) == 5
    cache = kv_cache.init(tiny, 3, 20)
    heads = (tiny.num_kv_heads, tiny.head_dim)
    shapes = {stack: {name: one.key_LBSKH.shape for name, one in layers.items()} for stack, layers in cache.items()}
    assert shapes == {
        "stack_0": {"layer_0": (2, 3, 8, *heads), "layer_1": (2, 3, 20, *heads)},
        "stack_1": {"layer_0": (1, 3, 8, *heads)},
    }
    full = kv_cache.init(tiny, 3, 20, full=True)
    assert full["stack_0"]["layer_0"].value_LBSKH.shape == (2, 3, 20, *heads)


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


def test_append_wraps_and_leaves_the_rest():
    filled = kv_cache.fill(ring(4), jnp.int32(0), *tokens(7), jnp.array([6, 4]))
    key_BTKH, value_BTKH = tokens(7)
    row_B, position_B = jnp.arange(2), jnp.array([6, 4])
    after = kv_cache.append(
        filled, jnp.int32(0), key_BTKH[row_B, position_B], value_BTKH[row_B, position_B], position_B
    )
    assert held(after) == [[4, 5, 6, 3], [104, 101, 102, 103]]
    assert held(after, period=1) == [[NEVER] * 4] * 2


def test_slots_hold_what_decoding_believes_they_hold():
    key_BTKH, value_BTKH = tokens(14, rows=1)
    one = ring(5, rows=1)
    for position in range(14):
        position_B = jnp.array([position])
        one = kv_cache.append(one, jnp.int32(0), key_BTKH[:, position], value_BTKH[:, position], position_B)
        believed_BS = reference.held_position(position_B, 5)
        np.testing.assert_array_equal(np.maximum(believed_BS, NEVER), held(one))


def test_fork_repeats_each_row_for_its_samples():
    filled = kv_cache.fill(ring(3), jnp.int32(0), *tokens(3), jnp.array([3, 3]))
    forked = kv_cache.fork({"stack_0": {"layer_0": filled}}, 2)["stack_0"]["layer_0"]
    assert held(forked) == [[0, 1, 2], [0, 1, 2], [100, 101, 102], [100, 101, 102]]
