"""HBM bytes of Pallas calls, against counts made by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from thinkfirst.kernels.cost import calibration, traffic

ROW = 128 * 4  # bytes of a float32 row of 128


def moved(function, *shapes):
    operands = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    jaxpr = jax.make_jaxpr(function)(*operands)
    return [traffic.hbm_bytes(eqn) for eqn in traffic.pallas_calls(jaxpr.jaxpr)]


def copy(x_ref, out_ref):
    out_ref[...] = x_ref[...]


def test_each_block_of_a_matmul_is_read_as_often_as_its_index_changes():
    # grid 8 x 4 x 4: left blocks change at every step but for i, right blocks at every step, results once per (i, j)
    square = ((4096, 4096), jnp.bfloat16)
    left, right, out = 128 * 512 * 1024 * 2, 128 * 1024 * 1024 * 2, 4096 * 4096 * 2
    assert moved(calibration.matmul, square, square) == [left + right + out]


def test_a_block_that_stays_is_read_once():
    def function(x, kept):
        return pl.pallas_call(
            lambda x_ref, kept_ref, out_ref: copy(x_ref, out_ref),
            grid=(4,),
            in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0)), pl.BlockSpec((8, 128), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((8, 128), lambda i: (i // 2, 0)),
            out_shape=jax.ShapeDtypeStruct((16, 128), jnp.float32),
        )(x, kept)

    found = moved(function, ((32, 128), jnp.float32), ((8, 128), jnp.float32))
    assert found == [(4 + 1 + 2) * 8 * ROW]


def test_calls_inside_other_programs_are_found():
    def twice(x):
        return pl.pallas_call(copy, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    function = jax.jit(lambda x: jax.lax.cond(x[0, 0] > 0, twice, lambda x: x, twice(x)))
    assert moved(function, ((8, 128), jnp.float32)) == [2 * 8 * ROW] * 2


def prefetching(place, *, stated: int | None = None):
    """Reads one block of 8 rows a step, at `place(step, prefetched)`, and writes one a step."""

    def function(prefetched, x):
        return pl.pallas_call(
            lambda prefetched_ref, x_ref, out_ref: copy(x_ref, out_ref),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(4,),
                in_specs=[pl.BlockSpec((8, 128), lambda i, prefetched_ref: (place(i, prefetched_ref), 0))],
                out_specs=pl.BlockSpec((8, 128), lambda i, prefetched_ref: (i, 0)),
            ),
            out_shape=jax.ShapeDtypeStruct((32, 128), jnp.float32),
            cost_estimate=stated and pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=stated),
        )(prefetched, x)

    return moved(function, ((4,), jnp.int32), ((32, 128), jnp.float32))


@pytest.mark.parametrize(
    ("place", "reads"),
    [
        (lambda i, ref: ref[i], 4),  # a page of its own at every step
        (lambda i, ref: ref[0], 1),  # the layer of a stack
        (lambda i, ref: jnp.minimum(i, ref[0]), 4),  # up to the last block in use
        (lambda i, ref: jnp.maximum(i, ref[0]), 4),  # from the first block in use
        (lambda i, ref: jnp.where(i < 2, ref[1], ref[2]) * 0 + i // 2, 2),
    ],
)
def test_prefetched_data_is_taken_at_its_dearest(place, reads):
    assert prefetching(place) == [(reads + 4) * 8 * ROW]


def test_what_the_kernel_states_is_taken_for_what_hangs_on_data_but_not_below_what_is_known():
    assert prefetching(lambda i, ref: ref[i], stated=6 * 8 * ROW) == [6 * 8 * ROW]
    assert prefetching(lambda i, ref: ref[i], stated=1) == [4 * 8 * ROW]
    assert prefetching(lambda i, ref: ref[0], stated=1) == [5 * 8 * ROW]


def test_a_statement_counts_for_nothing_where_all_is_known():
    def function(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        stated = pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=1)
        return pl.pallas_call(copy, out_shape=shape, cost_estimate=stated)(x)

    assert moved(function, ((8, 128), jnp.float32)) == [2 * 8 * ROW]


def test_an_operand_left_in_hbm_counts_once_and_its_aliased_result_not():
    def function(cache, new):
        def body(cache_ref, new_ref, out_ref, semaphore):
            copying = pltpu.make_async_copy(new_ref, out_ref.at[pl.ds(0, 8)], semaphore)
            copying.start()
            copying.wait()

        anywhere = pl.BlockSpec(memory_space=pl.ANY)
        return pl.pallas_call(
            body,
            in_specs=[anywhere, pl.BlockSpec((8, 128), lambda: (0, 0))],
            out_specs=anywhere,
            out_shape=jax.ShapeDtypeStruct(cache.shape, cache.dtype),
            scratch_shapes=[pltpu.SemaphoreType.DMA],
            input_output_aliases={0: 0},
        )(cache, new)

    assert moved(function, ((64, 128), jnp.float32), ((8, 128), jnp.float32)) == [(64 + 8) * ROW]
