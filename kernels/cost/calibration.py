"""Programs whose time on a real chip somebody published, to check the estimate against.

The matrix products are those of JAX's guide to Pallas matmuls on v5e: 4096 x 4096 x 4096 in bfloat16, by XLA and by a
kernel with 512 x 1024 x 1024 blocks.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

BLOCK = (512, 1024, 1024)
SMALL_BLOCK = (128, 128, 128)  # few enough values that no register is spilled


def _body(left_ref, right_ref, out_ref, sum_ref):  # type: ignore[no-untyped-def]
    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)

    sum_ref[...] += jnp.dot(left_ref[...], right_ref[...], preferred_element_type=jnp.float32)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        out_ref[...] = sum_ref[...].astype(out_ref.dtype)


def matmul(left: jax.Array, right: jax.Array, block: tuple[int, int, int] = BLOCK) -> jax.Array:
    """The product, by blocks: grid (rows, columns, inner), the float32 sum carried over the inner axis."""
    rows, columns, inner = block
    return pl.pallas_call(
        _body,
        grid=(left.shape[0] // rows, right.shape[1] // columns, left.shape[1] // inner),
        in_specs=[
            pl.BlockSpec((rows, inner), lambda i, j, k: (i, k)),
            pl.BlockSpec((inner, columns), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((rows, columns), lambda i, j, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((left.shape[0], right.shape[1]), left.dtype),
        scratch_shapes=[pltpu.VMEM((rows, columns), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        name="matmul",
    )(left, right)


def _square(size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct((size, size), jnp.bfloat16),) * 2


CASES: dict[str, Callable[[], tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]]] = {
    "matmul_pallas": lambda: (matmul, _square(4096)),
    "matmul_xla": lambda: (jnp.dot, _square(4096)),
    "matmul_small": lambda: (matmul, _square(1024)),
    "matmul_small_block": lambda: (functools.partial(matmul, block=SMALL_BLOCK), _square(256)),
}
