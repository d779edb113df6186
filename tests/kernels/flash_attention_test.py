import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.kernels.flash_attention import api


def naive(query, key, value, segment, *, scale, window, soft_cap):
    """One query at a time, in numpy float64."""
    batch, length, heads, _ = query.shape
    out = np.zeros(query.shape)
    for b, i, n in np.ndindex(batch, length, heads):
        k = n // (heads // key.shape[2])
        seen = [j for j in range(i + 1) if segment[b, j] == segment[b, i] and (not window or i - j < window)]
        score = np.array([query[b, i, n] @ key[b, j, k] for j in seen]) * scale
        score = soft_cap * np.tanh(score / soft_cap) if soft_cap else score
        weight = np.exp(score - score.max())
        out[b, i, n] = (weight / weight.sum()) @ value[b, seen, k]
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize(("window", "soft_cap"), [(0, 0.0), (3, 0.0), (0, 5.0), (4, 2.0)])
def test_equals_one_query_at_a_time(dtype, heads, groups, window, soft_cap):
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(2, 9, n, 6)), dtype) for n in (heads, groups, groups))
    segment = np.array([[1] * 4 + [2] * 5, [1] * 7 + [0] * 2])
    settings = {"scale": 0.4, "window": window, "soft_cap": soft_cap}
    found = api.attention(query, key, value, jnp.asarray(segment), **settings)
    exact = naive(*(np.asarray(x, np.float64) for x in (query, key, value)), segment, **settings)
    tolerance.assert_close(np.asarray(found.astype(jnp.float32)).astype(found.dtype), exact)


def test_gradient_is_finite_where_nothing_is_seen_twice():
    ones = jnp.ones((1, 3, 1, 2))
    grad = jax.grad(lambda q: api.attention(q, ones, ones, jnp.array([[1, 2, 3]]), scale=1.0).sum())(ones)
    assert np.isfinite(np.asarray(grad)).all()


def test_uneven_heads_are_refused():
    x = jnp.ones((1, 2, 3, 4))
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        api.attention(x, x[:, :, :2], x[:, :, :2], jnp.ones((1, 2), int), scale=1.0)


@pytest.mark.long
@pytest.mark.parametrize("window", [0, 5, 200])
def test_a_kernel_asked_for_by_name_is_the_reference(window):
    query, key, value = (jax.random.normal(jax.random.key(i), (1, 140, 2, 64)) for i in range(3))
    segment_BT = jnp.ones((1, 140), jnp.int32)
    settings = {"scale": 0.2, "window": window, "soft_cap": 5.0}
    expected, found = (
        api.attention(query, key, value, segment_BT, **settings, backend=backend)
        for backend in ("reference", "tpu_interpret")
    )
    tolerance.assert_close(found, expected)
    with pytest.raises(ValueError, match="backend tpu needs a TPU; this is cpu"):
        api.attention(query, key, value, segment_BT, **settings, backend="tpu")
