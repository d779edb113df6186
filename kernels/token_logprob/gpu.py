"""Token log-probabilities on a GPU: two Triton kernels and one plain matmul; jax-triton is imported when one is run.

| kernel           | grid                      | streams by                                   | carried                |
| ---------------- | ------------------------- | -------------------------------------------- | ---------------------- |
| `sweep`          | T / tokens, shares of V   | hidden [tokens, depth], table [words, depth] | max, sums, token logit |
| `logit_gradient` | chunk / tokens, V / words | hidden [tokens, depth], table [words, depth] | logits of the tile     |

Forward: each program sweeps its share of the vocabulary with an online softmax; the shares are combined outside, in
[shares, T] arrays.  A truncation floor is relative to the whole softmax, so with one there are two sweeps.  Backward:
`CHUNK` tokens at a time, the gradient of their logits is written in the dtype of the hidden states (512 MiB in
bfloat16 at 262,144 words) and multiplied with the table.  There is no [T, V] array, and no gradient of the table.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

CHUNK = 1024  # tokens whose logit gradients exist at a time
PROGRAMS = 528  # of a sweep, at most: four for each multiprocessor of an H100 or H200


class Tile(NamedTuple):
    """How one kernel is cut and launched."""

    tokens: int
    words: int
    depth: int
    warps: int
    stages: int


# First where products are of two-byte numbers, then of float32 (multiplied without tensor cores).  None spills; with
# 256 words `logit_gradient` spills 72 bytes where there is a floor, 24 where there is a soft cap.
TILES = {
    "sweep": (Tile(128, 256, 64, 8, 3), Tile(32, 32, 32, 4, 1)),
    "logit_gradient": (Tile(128, 128, 64, 8, 4), Tile(32, 32, 32, 4, 1)),
}


class Settings(NamedTuple):
    """What is fixed when a kernel is compiled."""

    soft_cap: float
    truncated: bool


def token_logprob(
    hidden_TD: Float[Array, "T D"],
    table_VD: Float[Array, "V D"],
    token_T: Int[Array, "T"],
    floor_T: Float[Array, "T"] | None,
    *,
    temperature: Float[Array, ""],
    soft_cap: float,
) -> tuple[Float32[Array, "T"], Float32[Array, "T"]]:
    """(log-prob, entropy) of each token as `reference.token_logprob` defines them; no floor: None, one sweep less.

    Only the hidden states get a gradient: the table and the temperature are constants here.
    """
    settings = Settings(soft_cap=soft_cap, truncated=floor_T is not None)
    table_VD = jax.lax.stop_gradient(table_VD.astype(hidden_TD.dtype))
    temperature_1 = jax.lax.stop_gradient(temperature.astype(jnp.float32).reshape(1))
    token_T = token_T.astype(jnp.int32)
    threshold_T = jnp.zeros(token_T.shape, jnp.float32)
    if floor_T is not None:
        whole = Settings(soft_cap=soft_cap, truncated=False)
        fixed_TD = jax.lax.stop_gradient(hidden_TD)
        lse_T = _forward(fixed_TD, table_VD, token_T, threshold_T, temperature_1, settings=whole)[2]
        threshold_T = jax.lax.stop_gradient(floor_T.astype(jnp.float32)) + lse_T
    return _token_logprob(hidden_TD, (table_VD, token_T, threshold_T, temperature_1), settings)


def _launch(kernel: str, *arrays: Array, out_shape: Any, tile: Tile, columns: int, settings: Settings) -> Any:
    import jax_triton  # deferred: an optional dependency that needs a GPU build of JAX

    from thinkfirst.kernels.token_logprob import triton_source

    hidden_TD, table_VD = arrays[:2]
    return jax_triton.triton_call(
        *arrays,
        kernel=getattr(triton_source, kernel),
        name=f"token_logprob_{kernel}",
        out_shape=out_shape,
        grid=(math.ceil(hidden_TD.shape[0] / tile.tokens), columns, 1),
        num_warps=tile.warps,
        num_stages=tile.stages,
        LENGTH=hidden_TD.shape[0],
        VOCAB=table_VD.shape[0],
        WIDTH=hidden_TD.shape[1],
        SOFT_CAP=settings.soft_cap,
        TRUNCATED=settings.truncated,
        TOKENS=tile.tokens,
        WORDS=tile.words,
        DEPTH=tile.depth,
        PRECISION="ieee" if hidden_TD.dtype == jnp.float32 else "tf32",
    )


def _tile(kernel: str, dtype: Any) -> Tile:
    return TILES[kernel][jnp.dtype(dtype) == jnp.float32]


def _forward(
    hidden_TD: Float[Array, "T D"], *rest: Array, settings: Settings
) -> tuple[Float32[Array, "T"], Float32[Array, "T"], Float32[Array, "T"]]:
    """(log-prob, entropy, log-sum-exp over what is kept)."""
    tile = _tile("sweep", hidden_TD.dtype)
    length, vocab = hidden_TD.shape[0], rest[0].shape[0]
    shares = min(max(PROGRAMS // math.ceil(length / tile.tokens), 1), math.ceil(vocab / tile.words))
    out_shape = (jax.ShapeDtypeStruct((shares, length), jnp.float32),) * 4
    peak, total, moment, token_logit = _launch(
        "sweep", hidden_TD, *rest, out_shape=out_shape, tile=tile, columns=shares, settings=settings
    )
    highest_T = peak.max(axis=0)
    weight = jnp.exp2(peak - highest_T)
    total_T = (weight * total).sum(axis=0)
    moment_T = (weight * (moment + total * (peak - highest_T))).sum(axis=0)
    ln_2 = jnp.float32(math.log(2))
    lse_T = ln_2 * (highest_T + jnp.log2(total_T))
    return ln_2 * token_logit.sum(axis=0) - lse_T, ln_2 * (jnp.log2(total_T) - moment_T / total_T), lse_T


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _token_logprob(
    hidden_TD: Float[Array, "T D"], constants: tuple[Array, ...], settings: Settings
) -> tuple[Float32[Array, "T"], Float32[Array, "T"]]:
    return _forward(hidden_TD, *constants, settings=settings)[:2]


def _token_logprob_fwd(
    hidden_TD: Float[Array, "T D"], constants: tuple[Array, ...], settings: Settings
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    logp_T, entropy_T, lse_T = _forward(hidden_TD, *constants, settings=settings)
    return (logp_T, entropy_T), (hidden_TD, constants, lse_T, entropy_T)


def _token_logprob_bwd(
    settings: Settings, residuals: tuple[Any, ...], upstream: tuple[Array, Array]
) -> tuple[Array, None]:
    hidden_TD, (table_VD, token_T, threshold_T, temperature_1), lse_T, entropy_T = residuals
    length, width = hidden_TD.shape
    chunk = min(CHUNK, length)
    tile = _tile("logit_gradient", hidden_TD.dtype)

    def cut(array: Array) -> Array:
        padding = ((0, -length % chunk),) + ((0, 0),) * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(-1, chunk, *array.shape[1:])

    def chunk_gradient(parts: tuple[Array, ...]) -> Array:
        hidden_CD, token_C, threshold_C, *statistics = parts
        gradient_CV = _launch(
            "logit_gradient",
            *(hidden_CD, table_VD, token_C, threshold_C, temperature_1, *statistics),
            out_shape=jax.ShapeDtypeStruct((chunk, table_VD.shape[0]), hidden_CD.dtype),
            tile=tile,
            columns=math.ceil(table_VD.shape[0] / tile.words),
            settings=settings,
        )
        product_CD = jnp.einsum("CV,VD->CD", gradient_CV, table_VD, preferred_element_type=jnp.float32)
        return product_CD.astype(hidden_CD.dtype)

    # A padded token has logits of 0, a log-sum-exp of 0 and no upstream gradient: it gives zeros.
    parts = (hidden_TD, token_T, threshold_T, lse_T, entropy_T, *upstream)
    gradient = jax.lax.map(chunk_gradient, tuple(cut(part) for part in parts))
    return gradient.reshape(-1, width)[:length], None


_token_logprob.defvjp(_token_logprob_fwd, _token_logprob_bwd)
