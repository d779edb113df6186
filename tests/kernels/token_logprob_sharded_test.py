"""A vocabulary that is split over `tensor`, rows of a batch over `data`: the same as whole, and so is its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import tolerance
from thinkfirst.core import mesh as mesh_lib
from thinkfirst.kernels.token_logprob import chunked, reference, streamed, tpu

SLOW = pytest.mark.long
LENGTH, SIZE, WIDTH = 24, 2048, 128


def operands(floor):
    rng = np.random.default_rng(0)
    return streamed.Operands(
        jnp.asarray(rng.normal(size=(LENGTH, WIDTH)), jnp.float32),
        jnp.asarray(0.3 * rng.normal(size=(SIZE, WIDTH)), jnp.float32),
        jnp.asarray(rng.integers(0, SIZE, LENGTH)),
        jnp.asarray(np.where(np.arange(LENGTH) % 3, floor, -np.inf), jnp.float32),
        jnp.float32(0.8),
    )


@pytest.mark.parametrize(
    ("shards", "soft_cap", "floor"),
    [(2, 5.0, -5.5)] + [pytest.param(n, 5.0 * (n % 3), -5.5, marks=SLOW) for n in (1, 4, 8)],
)
def test_the_combine_over_shards(shards, soft_cap, floor):
    check(chunked.sweep, shards, soft_cap=soft_cap, floor=floor)


@pytest.mark.parametrize("shards", [pytest.param(n, marks=SLOW) for n in (2, 4, 8)])
def test_the_kernel_over_shards(shards):
    """As plain operations: the interpreter that looks for races would run the devices one after another."""
    check(functools.partial(tpu.sweep, block_T=32, block_V=128, interpret=True), shards, soft_cap=5.0, floor=-np.inf)


def check(sweep, shards, *, soft_cap, floor):
    """Values, and the gradient to states that every device of a `tensor` group has, taken outside of the shard_map."""
    arrays = operands(floor)
    plan = streamed.Plan(
        sweep=sweep,
        soft_cap=soft_cap,
        truncated=bool(np.isfinite(arrays.floor_T).any()),
        entropy_gradient=True,
        axis_name="tensor",
    )
    mesh = mesh_lib.make(mesh_lib.MeshConfig(data=8 // shards, tensor=shards))
    rows, none = PartitionSpec(mesh_lib.BATCH_AXES), PartitionSpec()
    run = jax.shard_map(
        functools.partial(streamed.token_logprob, plan),
        mesh=mesh,
        in_specs=(streamed.Operands(rows, PartitionSpec("tensor"), rows, rows, none),),
        out_specs=(rows, rows),
        check_vma=False,
    )

    def whole(arrays):
        return reference.token_logprob(*arrays[:4], temperature=arrays.temperature, soft_cap=soft_cap, chunk=LENGTH)

    def total(hidden_TD, logprob):
        logp_T, entropy_T = logprob(arrays._replace(hidden_TD=hidden_TD))
        return (jnp.cos(logp_T) + jnp.sin(entropy_T)).sum(), (logp_T, entropy_T)

    measured = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)
    (_, found), gradient_TD = measured(arrays.hidden_TD, run)
    (_, expected), exact_TD = measured(arrays.hidden_TD, whole)
    for mine, theirs in zip(found, expected, strict=True):
        tolerance.assert_logprob(mine, theirs)
    tolerance.assert_gradient(gradient_TD, exact_TD)
