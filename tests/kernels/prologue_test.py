import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.kernels import prologue


def drawn(*shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def test_by_hand():
    """Root mean square of (3, 4, 0, 0) is 5 / 2; a quarter turn takes (first, second) to (-second, first)."""
    x_BTNH = jnp.asarray([3.0, 4.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    scale_H = jnp.asarray([0.0, 1.0, 0.0, 0.0])
    sin, cos = jnp.asarray([[[1.0, 0.0]]]), jnp.asarray([[[0.0, 1.0]]])
    tolerance.assert_close(prologue.apply(x_BTNH, None, sin, cos, 0.0).ravel(), np.float32([0, 4, 3, 0]))
    tolerance.assert_close(prologue.apply(x_BTNH, scale_H, sin, cos, 0.0).ravel(), np.float32([0, 3.2, 1.2, 0]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("normed", [True, False])
def test_equals_norm_and_rotation_written_out(dtype, normed):
    """The rotation as products of complex numbers, in float64."""
    x_BTNH, scale_H = drawn(2, 9, 3, 16, dtype=dtype), drawn(16, dtype=dtype, seed=1)
    position_BT = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 3, 4], [5000, 5001, 0, 1, 2, 3, 4, 5, 6]])
    x, scale = np.asarray(x_BTNH, np.float64), np.asarray(scale_H, np.float64)
    if normed:
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-2) * (1 + scale)
    angle = np.asarray(position_BT)[:, :, None, None] / 8.0 * 1e4 ** (-np.arange(8) / 8)
    turned = (x[..., :8] + 1j * x[..., 8:]) * np.exp(1j * angle)
    expected = np.concatenate([turned.real, turned.imag], axis=-1).astype(np.float32)
    sin, cos = prologue.turns(position_BT, 16, base=1e4, factor=8.0)
    found = prologue.apply(x_BTNH, scale_H if normed else None, sin, cos, 1e-2)
    assert found.dtype == dtype
    slack = 50 if dtype == "float32" else 1  # angles of 5,000 / 8 in float32
    tolerance.assert_close(np.asarray(found), expected, slack=slack)


def test_epsilon_stays_a_number_inside_a_jitted_function():
    x_BTNH = drawn(1, 2, 1, 4)
    sin, cos = prologue.turns(jnp.arange(2)[None], 4, base=1e4, factor=1.0)
    given = prologue.Prologue(jnp.zeros(4), None, sin, cos, 1e-6)

    @jax.jit
    def run(given):
        assert type(given.epsilon) is float
        return prologue.both(given, x_BTNH, x_BTNH)

    query_BTNH, key_BTNH = run(given)
    tolerance.assert_close(jnp.square(query_BTNH).mean(axis=-1), np.ones((1, 2, 1), np.float32))
    tolerance.assert_close(key_BTNH[:, 0], x_BTNH[:, 0])


def test_rotation_of_one_pair_by_hand():
    x_BTNH = jnp.asarray([[[[3.0, 4.0]], [[3.0, 4.0]]]])
    sin, cos = prologue.turns(jnp.asarray([[0, 2]]), 2, base=10_000.0, factor=4.0)
    turned, angle = prologue.apply(x_BTNH, None, sin, cos, 0.0), 2 / 4
    by_hand = [3 * np.cos(angle) - 4 * np.sin(angle), 4 * np.cos(angle) + 3 * np.sin(angle)]
    tolerance.assert_close(turned[0, :, 0], np.array([[3, 4], by_hand], np.float32))
