import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.core import mesh, sharding
from thinkfirst.rl import entropy


def case():
    rng = np.random.default_rng(3)
    length_B = np.array([7, 5, 3, 6, 2, 7, 4, 1])
    return rng.uniform(size=(8, 7)).astype(np.float32), np.arange(7)[None, :] < length_B[:, None]


def test_floor_worked_by_hand():
    """Five tokens 1 2 3 4 5 (9 is masked): the top fifth begins at the .8 quantile, 4.2; the top half at 3."""
    entropy_BT = jnp.array([[3.0, 1.0, 9.0], [5.0, 2.0, 4.0]])
    mask_BT = jnp.array([[True, True, False], [True, True, True]])
    for share, expected in ((0.2, 4.2), (0.5, 3.0), (1.0, 1.0)):
        tolerance.assert_close(entropy.top_share_floor(entropy_BT, mask_BT, share=share), np.float32(expected))


@pytest.mark.parametrize("share", [0.01, 0.2, 0.37, 0.8])
def test_floor_is_the_quantile_of_numpy(share):
    entropy_BT, mask_BT = case()
    found = entropy.top_share_floor(jnp.asarray(entropy_BT), jnp.asarray(mask_BT), share=share)
    tolerance.assert_close(found, np.quantile(entropy_BT[mask_BT], 1 - share).astype(np.float32))


def test_floor_of_sharded_rows_is_that_of_all_of_them():
    arrays = [jnp.asarray(x) for x in case()]
    spread = jax.device_put(arrays, sharding.rows(mesh.make(mesh.MeshConfig(data=8))))
    floor = jax.jit(lambda e, m: entropy.top_share_floor(e, m, share=0.2))
    assert float(floor(*spread)) == float(floor(*arrays))


def test_without_tokens_there_is_no_floor():
    assert float(entropy.top_share_floor(jnp.ones((1, 2)), jnp.zeros((1, 2), bool), share=0.2)) == -np.inf
    one = jnp.array([[True, False]])
    assert float(entropy.top_share_floor(jnp.array([[7.0, 9.0]]), one, share=0.2)) == 7.0
