import jax.numpy as jnp
import numpy as np

import tolerance
from thinkfirst.kernels.decode_attention import api, quantised


def test_the_largest_of_a_head_is_127_and_zeros_stay_zeros():
    coded = quantised.quantised(jnp.array([[2.54, -1.27, 0.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(coded.values, [[127, -64, 0], [0, 0, 0]])  # -63.5 goes to the even neighbour
    tolerance.assert_close(coded.scale, jnp.array([0.02, 0.0]))
    tolerance.assert_close(quantised.restored(coded, coded.scale.dtype)[0], jnp.array([2.54, -1.28, 0.0]))


def _context(coded):
    """16 rows of 512 random normal tokens, 4 query heads of 256 on one; `coded` makes caches of keys and values."""
    rng = np.random.default_rng(0)
    query, *new = (jnp.asarray(rng.normal(size=(16, n, 256)), jnp.float32) for n in (4, 1, 1))
    ring = tuple(coded(jnp.asarray(rng.normal(size=(1, 16, 512, 1, 256)), jnp.float32)) for _ in range(2))
    return api.append_attention(query, tuple(new), ring, jnp.int32(0), jnp.full(16, 511), scale=1 / 16)[0]


def test_the_error_of_a_context():
    """Relative to the norm, on random normal numbers: 1 % where bfloat16 has 0.24 %."""
    exact = _context(lambda x: x)
    error = lambda coded: float(jnp.linalg.norm(_context(coded) - exact) / jnp.linalg.norm(exact))  # noqa: E731
    print(error(lambda x: x.astype(jnp.bfloat16).astype(x.dtype)), error(quantised.quantised))
    assert 0.002 < error(lambda x: x.astype(jnp.bfloat16).astype(x.dtype)) < 0.003
    assert 0.008 < error(quantised.quantised) < 0.012
