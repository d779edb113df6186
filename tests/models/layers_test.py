"""Positions are those of a token in its own segment, wherever the segment lies in its row."""

import jax.numpy as jnp
import numpy as np

from thinkfirst.models import layers


def test_positions_count_from_the_start_of_each_segment():
    segment_BT = jnp.array(
        [
            [1, 1, 1, 0, 0, 0],  # padded on the right
            [0, 0, 1, 1, 1, 1],  # padded on the left
            [1, 1, 2, 2, 2, 0],  # packed
            [3, 1, 1, 3, 3, 3],  # numbers need not rise
        ]
    )
    expected = [[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3], [0, 1, 0, 1, 2, 0], [0, 0, 1, 0, 1, 2]]
    np.testing.assert_array_equal(layers.segment_positions(segment_BT), expected)
