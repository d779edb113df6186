"""The switches of conftest.py are on: shapes are checked, promotion is strict, there are eight devices."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

import tolerance
from thinkfirst.rl import batch


def prompts():
    return batch.Prompts(
        tokens_PT=jnp.zeros((2, 3), jnp.int32),
        length_P=jnp.ones(2, jnp.int32),
        id_P=jnp.ones(2, jnp.uint32),
    )


def test_a_wrong_shape_is_refused():
    assert batch.length_mask(jnp.ones(2, jnp.int32), 4).shape == (2, 4)
    with pytest.raises(jaxtyping.TypeCheckError):
        batch.length_mask(jnp.ones((2, 3), jnp.int32), 4)


def test_a_tree_may_hold_what_jax_puts_into_it():
    shapes = jax.eval_shape(lambda tree: tree, prompts())
    assert shapes.tokens_PT.shape == (2, 3)
    assert jax.vmap(lambda tree: tree.tokens_PT.sum())(prompts()).shape == (2,)
    assert jax.tree.map(lambda x: x[None], prompts()).length_P.shape == (1, 2)


def test_mixed_dtypes_are_refused():
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(2, jnp.bfloat16) + jnp.ones(2, jnp.float32)


def test_there_are_eight_devices_to_shard_over():
    if jax.default_backend() != "cpu":
        pytest.skip("left out: the count of devices is that of the accelerator")
    assert jax.device_count() == 8


def test_the_tolerance_depends_on_the_dtype():
    tolerance.assert_close(jnp.float32(1.00001), 1.0)
    tolerance.assert_close(jnp.bfloat16(1.01), 1.0)
    tolerance.assert_close(jnp.float32(1.0001), 1.0, slack=10)
    far = ((jnp.float32(1.0001), 1.0), (jnp.bfloat16(1.1), 1.0), (jnp.int32(1), 2), (jnp.ones(2), 1.0))
    for actual, expected in far:
        with pytest.raises(AssertionError):
            tolerance.assert_close(actual, expected)
    with pytest.raises(AssertionError):
        tolerance.assert_close(jnp.float32(jnp.nan), jnp.nan)
