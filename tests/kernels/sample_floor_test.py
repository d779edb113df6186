import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from thinkfirst.core import mesh as mesh_lib
from thinkfirst.kernels.sample import floor, reference

SETTINGS = [(0, 1.0), (5, 1.0), (0, 0.9), (50, 0.95), (1, 0.5), (0, 0.0), (299, 0.999), (300, 0.3), (1000, 0.7)]
SETTINGS = [(*pair, 0.0) for pair in SETTINGS] + [(0, 1.0, 0.1), (50, 0.9, 0.03), (0, 1.0, 1.0), (3, 1.0, 1e-30)]


def scalars(top_k, top_p, min_p):
    return jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p)


@functools.cache
def both():
    return jax.jit(floor.truncation_floor, static_argnums=4), jax.jit(reference.truncation_floor)


@pytest.mark.parametrize("spread", [0.0, 0.001, 0.05, 1.0, 5.0])
@pytest.mark.parametrize("step", [0.0, 0.25])
def test_halving_finds_the_floor_that_sorting_finds(spread, step):
    """Bit for bit: peaked and flat rows, many equals (`step` rounds the logits), nearly tied chains longer than 64."""
    halving, sorting = both()
    logit_BV = spread * jax.random.normal(jax.random.key(1), (6, 300))
    logp_BV = jax.nn.log_softmax(jnp.round(logit_BV / step) * step if step else logit_BV)
    for setting in SETTINGS:
        chosen = scalars(*setting)
        np.testing.assert_array_equal(halving(logp_BV, *chosen, None), sorting(logp_BV, *chosen))


def test_a_floor_never_splits_negligible_equals():
    """1, then three of e^-20: top-k 2 keeps all four; sorting puts the floor on the equals, halving under them."""
    halving, sorting = both()
    logp_BV = jnp.array([[0.0, -20.0, -20.0, -20.0, -30.0]])
    chosen = scalars(2, 1.0, 0.0)
    assert halving(logp_BV, *chosen, None).tolist() == [-25.0]
    assert sorting(logp_BV, *chosen).tolist() == [-20.0]


def test_forbidden_words_and_faulty_rows_end_the_search():
    """-inf is below every floor; rows of NaN, of -inf or with one NaN come out in bounded time, whatever as."""
    halving, sorting = both()
    logp_BV = jax.nn.log_softmax(jax.random.normal(jax.random.key(4), (4, 300)).at[0, ::3].set(-jnp.inf))
    faulty_BV = logp_BV.at[1].set(jnp.nan).at[2].set(-jnp.inf).at[3, 7].set(jnp.nan)
    for setting in SETTINGS:
        chosen = scalars(*setting)
        floor_B = halving(faulty_BV, *chosen, None)
        np.testing.assert_array_equal(floor_B[:1], sorting(logp_BV[:1], *chosen))


@pytest.mark.parametrize("spread", [0.001, 1.0])
def test_shares_of_the_vocabulary_find_the_floor_of_the_whole(spread):
    logp_BV = jax.nn.log_softmax(spread * jax.random.normal(jax.random.key(2), (3, 320)))
    mesh = mesh_lib.make(mesh_lib.MeshConfig(data=1, tensor=4), jax.devices()[:4])
    whole, share = PartitionSpec(), PartitionSpec(None, "tensor")
    sharded = jax.jit(
        jax.shard_map(
            functools.partial(floor.truncation_floor, axis_name="tensor"),
            mesh=mesh,
            in_specs=(share, whole, whole, whole),
            out_specs=whole,
            check_vma=False,
        )
    )
    for setting in SETTINGS:
        chosen = scalars(*setting)
        np.testing.assert_array_equal(sharded(logp_BV, *chosen), both()[1](logp_BV, *chosen))
