import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.kernels.decode_attention import api, reference
from thinkfirst.kernels.flash_attention import api as flash


def test_positions_held_by_a_ring_of_four():
    """After position 5 the slots hold 4 5 2 3; after position 1 two of them hold nothing."""
    assert reference.held_position(jnp.array([5, 1]), 4).tolist() == [[4, 5, 2, 3], [0, 1, -2, -1]]
    assert reference.visible(jnp.array([5]), 4, 2).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(("slots", "window"), [(12, 0), (12, 4), (4, 4)])
def test_equals_the_last_row_of_whole_attention(slots, window):
    rng = np.random.default_rng(1)
    length = 9
    query, key, value = (jnp.asarray(rng.normal(size=(2, length, n, 6)), "float32") for n in (4, 2, 2))
    settings = {"scale": 0.3, "window": window, "soft_cap": 3.0}
    expected = flash.attention(query, key, value, jnp.ones((2, length), int), **settings)[:, -1]
    ring_key, ring_value = (jnp.full((2, slots, 2, 6), 7.0) for _ in range(2))  # rubbish where nothing was written
    for position in range(length):
        ring_key = ring_key.at[:, position % slots].set(key[:, position])
        ring_value = ring_value.at[:, position % slots].set(value[:, position])
    position_B = jnp.full((2,), length - 1)
    tolerance.assert_close(reference.attention(query[:, -1], ring_key, ring_value, position_B, **settings), expected)


def test_uneven_heads_are_refused():
    x = jnp.ones((1, 3, 4))
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        ring, new = (jnp.ones((1, 1, 5, 2, 4)),) * 2, (jnp.ones((1, 2, 4)),) * 2
        api.append_attention(x, new, ring, jnp.int32(0), jnp.array([0]), scale=1.0)
