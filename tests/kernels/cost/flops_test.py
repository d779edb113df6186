import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from thinkfirst.kernels.cost import flops


def counted(function, *shapes, **settings):
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flops.count(jax.make_jaxpr(function)(*operands).jaxpr, **settings)


def test_a_product_is_two_per_pair_and_a_scan_counts_every_round():
    assert counted(lambda a, b: a @ b, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert counted(lambda a, b: jnp.einsum("btd,btd->bt", a, b), (2, 3, 4), (2, 3, 4)) == 2 * 2 * 3 * 4
    three = lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]  # noqa: E731
    assert counted(three, (2, 4), (3, 4, 4)) == 3 * 2 * 2 * 4 * 4


def test_what_nothing_reads_is_not_counted():
    def wasteful(a, b):
        a @ b
        return a.sum()

    assert counted(wasteful, (3, 4), (4, 5)) == 0


def test_of_branches_the_larger_counts():
    both = lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a)  # noqa: E731
    assert counted(both, (4, 4)) == 2 * 2 * 4**3


def test_each_device_runs_the_body_of_a_shard_map():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    spec = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(lambda a: a @ a.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert counted(mapped, (8, 5)) == 4 * 2 * 2 * 2 * 5


def kernel(name, operands, result=(8,)):
    """A Pallas call of that name, of which nothing but the shapes matters."""

    def body(*refs):
        refs[-1][...] = jnp.zeros(result)

    call = pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct(result, jnp.float32), name=name)
    return counted(call, *operands, window=2)


def test_kernels_count_by_what_is_asked_of_them():
    heads = ((1, 2, 4, 8), (1, 1, 4, 8), (1, 1, 4, 8))  # four tokens, two heads of eight
    assert kernel("causal_attention", heads) == 2 * 2 * 2 * 8 * (1 + 2 + 3 + 4)
    assert kernel("window_attention_forward", heads) == 2 * 2 * 2 * 8 * (1 + 2 + 2 + 2)
    assert kernel("causal_attention_gradient", heads) == 5 * 2 * 2 * 8 * (1 + 2 + 3 + 4)
    assert kernel("token_logprob", ((1,), (6, 8), (32, 8))) == 2 * 2 * 6 * 8 * 32
    assert kernel("grouped_decode", ((3, 4, 8), (2, 3, 16, 2, 8), (2, 3, 16, 2, 8))) == 2 * 2 * 3 * 4 * 16 * 8


def test_a_kernel_without_a_count_is_an_error():
    with pytest.raises(ValueError, match="'unheard_of' has no count"):
        kernel("unheard_of", ((8,),))
