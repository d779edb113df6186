"""Attention of training on a GPU: three Triton kernels, called through jax-triton, which is imported when one is run.

| kernel               | grid               | block held                   | streams by            | carried          |
| -------------------- | ------------------ | ---------------------------- | --------------------- | ---------------- |
| `forward`            | T / queries, N, B  | query [queries, H]           | key, value [keys, H]  | context, max, sum|
| `query_gradient`     | T / queries, N, B  | query, upstream [queries, H] | key, value [keys, H]  | gradient         |
| `key_value_gradient` | T / keys, K, B     | key, value [keys, H]         | query, upstream       | both gradients   |

Tiles beyond the diagonal, outside the window or in other segments are never read: the first two bounds are arithmetic
on program ids, the third is one number per tile (`first_seen`, `last_seen`).  Residual: the log-sum-exp [B, T, N].
The gradients of keys and values sum over the heads of a group inside the kernel: no atomics, no partial arrays.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from thinkfirst.kernels.flash_attention import residuals

WIDTHS = (16, 32, 64, 128, 256)


class Tile(NamedTuple):
    """How one kernel is cut and launched."""

    queries: int
    keys: int
    warps: int
    stages: int


class Settings(NamedTuple):
    """What is fixed when a kernel is compiled."""

    scale: float
    window: int
    soft_cap: float


# By kernel; first where products are of two-byte numbers, then of float32 (multiplied without tensor cores).  At width
# 256 none spills a register; with 64 queries instead of 32, `key_value_gradient` spills 72 to 176 bytes.
TILES = {
    "forward": (Tile(128, 64, 8, 2), Tile(32, 16, 8, 1)),
    "query_gradient": (Tile(128, 32, 8, 2), Tile(32, 32, 8, 1)),
    "key_value_gradient": (Tile(32, 64, 8, 2), Tile(32, 32, 8, 1)),
}


def supports(query_BTNH: Float[Array, "B T N H"], key_BTKH: Float[Array, "B T K H"]) -> bool:
    """Whether the kernels can run on operands of these shapes and dtypes."""
    even = query_BTNH.shape[2] % key_BTKH.shape[2] == 0
    same = query_BTNH.dtype == key_BTKH.dtype and query_BTNH.dtype in (jnp.bfloat16, jnp.float16, jnp.float32)
    return even and same and query_BTNH.shape[3] in WIDTHS


def attention(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segment_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int,
    soft_cap: float,
) -> Float[Array, "B T N H"]:
    """Context of every position, as `reference.attention` defines it."""
    if not supports(query_BTNH, key_BTKH):
        raise ValueError(
            f"no kernel for queries {query_BTNH.dtype}{query_BTNH.shape} on keys {key_BTKH.dtype}{key_BTKH.shape}: "
            f"the width of a head must be one of {WIDTHS}, the dtypes equal, the heads a multiple of the groups"
        )
    settings = Settings(scale=scale, window=window, soft_cap=soft_cap)
    return _attention(query_BTNH, key_BTKH, value_BTKH, segment_BT.astype(jnp.int32), settings)


def _tile_range(segment_BT: Int[Array, "B T"], size: int) -> tuple[Int[Array, "B C"], Int[Array, "B C"]]:
    """Smallest and largest segment id of each tile."""
    padded = jnp.pad(segment_BT, ((0, 0), (0, -segment_BT.shape[1] % size)), mode="edge")
    tiles = padded.reshape(padded.shape[0], -1, size)
    return tiles.min(axis=2), tiles.max(axis=2)


def _overlap(segment_BT: Int[Array, "B T"], size: int, other: int) -> Array:
    """[B, C, other C]: whether the ranges of segment ids of a tile and of one of the other size meet."""
    low_BC, high_BC = _tile_range(segment_BT, size)
    other_low_BC, other_high_BC = _tile_range(segment_BT, other)
    return (low_BC[:, :, None] <= other_high_BC[:, None, :]) & (other_low_BC[:, None, :] <= high_BC[:, :, None])


def first_seen(segment_BT: Int[Array, "B T"], queries: int, keys: int) -> Int[Array, "B C"]:
    """Position where the first tile of keys starts that can share a segment with each tile of queries."""
    return (jnp.argmax(_overlap(segment_BT, queries, keys), axis=2) * keys).astype(jnp.int32)


def last_seen(segment_BT: Int[Array, "B T"], keys: int, queries: int) -> Int[Array, "B C"]:
    """Position behind the last tile of queries that can share a segment with each tile of keys."""
    meets = _overlap(segment_BT, keys, queries)
    end_BC = (meets.shape[2] - jnp.argmax(meets[:, :, ::-1], axis=2)) * queries
    return jnp.minimum(end_BC, segment_BT.shape[1]).astype(jnp.int32)


def _tile(kernel: str, dtype: Any) -> Tile:
    return TILES[kernel][jnp.dtype(dtype) == jnp.float32]


def _launch(kernel: str, *arrays: Array, out_shape: Any, grid: tuple[int, int, int], settings: Settings) -> Any:
    import jax_triton  # deferred: an optional dependency that needs a GPU build of JAX

    from thinkfirst.kernels.flash_attention import triton_source

    query_BTNH, key_BTKH = arrays[:2]
    tile = _tile(kernel, query_BTNH.dtype)
    return jax_triton.triton_call(
        *arrays,
        kernel=getattr(triton_source, kernel),
        name=f"flash_attention_{kernel}",
        out_shape=out_shape,
        grid=grid,
        num_warps=tile.warps,
        num_stages=tile.stages,
        LENGTH=query_BTNH.shape[1],
        HEADS=query_BTNH.shape[2],
        GROUPS=key_BTKH.shape[2],
        WIDTH=query_BTNH.shape[3],
        WINDOW=settings.window,
        SCALE=settings.scale,
        SOFT_CAP=settings.soft_cap,
        QUERIES=tile.queries,
        KEYS=tile.keys,
        PRECISION="ieee" if query_BTNH.dtype == jnp.float32 else "tf32",
    )


def _forward(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segment_BT: Int[Array, "B T"],
    settings: Settings,
) -> tuple[Float[Array, "B T N H"], Float32[Array, "B T N"]]:
    batch, length, heads, _ = query_BTNH.shape
    tile = _tile("forward", query_BTNH.dtype)
    first_BC = first_seen(segment_BT, tile.queries, tile.keys)
    out_shape = (
        jax.ShapeDtypeStruct(query_BTNH.shape, query_BTNH.dtype),
        jax.ShapeDtypeStruct((batch, length, heads), jnp.float32),
    )
    grid = (math.ceil(length / tile.queries), heads, batch)
    operands = (query_BTNH, key_BTKH, value_BTKH, segment_BT, first_BC)
    return _launch("forward", *operands, out_shape=out_shape, grid=grid, settings=settings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segment_BT: Int[Array, "B T"],
    settings: Settings,
) -> Float[Array, "B T N H"]:
    return _forward(query_BTNH, key_BTKH, value_BTKH, segment_BT, settings)[0]


def _attention_fwd(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segment_BT: Int[Array, "B T"],
    settings: Settings,
) -> tuple[Float[Array, "B T N H"], tuple[Array, ...]]:
    context_BTNH, lse_BTN = residuals.named(*_forward(query_BTNH, key_BTKH, value_BTKH, segment_BT, settings))
    return context_BTNH, (query_BTNH, key_BTKH, value_BTKH, segment_BT, context_BTNH, lse_BTN)


def _attention_bwd(
    settings: Settings, saved: tuple[Array, ...], upstream_BTNH: Float[Array, "B T N H"]
) -> tuple[Array, Array, Array, None]:
    query_BTNH, key_BTKH, value_BTKH, segment_BT, context_BTNH, lse_BTN = saved
    batch, length, heads, _ = query_BTNH.shape
    inner_BTN = (upstream_BTNH.astype(jnp.float32) * context_BTNH.astype(jnp.float32)).sum(axis=3)
    rest = (upstream_BTNH, lse_BTN, inner_BTN)

    tile = _tile("query_gradient", query_BTNH.dtype)
    query_gradient_BTNH = _launch(
        "query_gradient",
        *(query_BTNH, key_BTKH, value_BTKH, segment_BT, first_seen(segment_BT, tile.queries, tile.keys), *rest),
        out_shape=jax.ShapeDtypeStruct(query_BTNH.shape, query_BTNH.dtype),
        grid=(math.ceil(length / tile.queries), heads, batch),
        settings=settings,
    )
    tile = _tile("key_value_gradient", query_BTNH.dtype)
    key_gradient_BTKH, value_gradient_BTKH = _launch(
        "key_value_gradient",
        *(query_BTNH, key_BTKH, value_BTKH, segment_BT, last_seen(segment_BT, tile.keys, tile.queries), *rest),
        out_shape=(jax.ShapeDtypeStruct(key_BTKH.shape, key_BTKH.dtype),) * 2,
        grid=(math.ceil(length / tile.keys), key_BTKH.shape[2], batch),
        settings=settings,
    )
    return query_gradient_BTNH, key_gradient_BTKH, value_gradient_BTKH, None


_attention.defvjp(_attention_fwd, _attention_bwd)
