"""Token log-probabilities on a GPU: two Triton kernels and one plain matmul; jax-triton is imported when one is run.

| kernel           | grid                      | streams by                                   | carried                |
| ---------------- | ------------------------- | -------------------------------------------- | ---------------------- |
| `sweep`          | T / tokens, shares of V   | hidden [tokens, depth], table [words, depth] | max, sums, token logit |
| `logit_gradient` | chunk / tokens, V / words | hidden [tokens, depth], table [words, depth] | logits of the tile     |

Forward: each program sweeps its share of the vocabulary with an online softmax; the shares are combined outside, in
[shares, T] arrays, and so are those of other devices.  A truncation floor is relative to the whole softmax, so with one
there are two sweeps.  Backward: `CHUNK` tokens at a time, the gradient of their logits is written in the dtype of the
hidden states (512 MiB in bfloat16 at 262,144 words) and multiplied with the table.  There is no [T, V] array.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
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
    """What is fixed when a kernel is compiled.  `truncated` False: every floor is known to be -inf."""

    soft_cap: float
    truncated: bool
    axis_name: str | None = None


class Operands(NamedTuple):
    """What the kernels read; a word is kept where its logit is at least the threshold of its token."""

    hidden_TD: Float[Array, "T D"]
    table_VD: Float[Array, "V D"]
    token_T: Int[Array, "T"]
    threshold_T: Float32[Array, "T"]
    temperature_1: Float32[Array, "1"]


def supports(hidden_TD: Float[Array, "T D"]) -> bool:
    """Whether the kernels can run on hidden states of this dtype; any shape will do."""
    return hidden_TD.dtype in (jnp.bfloat16, jnp.float16, jnp.float32)


def token_logprob(
    settings: Settings,
    hidden_TD: Float[Array, "T D"],
    table_VD: Float[Array, "V D"],
    token_T: Int[Array, "T"],
    floor_T: Float[Array, "T"],
    *,
    temperature: Float[Array, ""],
) -> tuple[Float32[Array, "T"], Float32[Array, "T"]]:
    """(log-prob, entropy) of each token as `reference.token_logprob` defines them.

    With an axis name, inside `shard_map`, `table_VD` is this device's part of the vocabulary, in order.
    """
    if not supports(hidden_TD):
        raise ValueError(f"no kernel for hidden states of {hidden_TD.dtype}")
    token_T = token_T.astype(jnp.int32)
    if settings.axis_name is not None:  # a word of another device is one that no tile holds
        token_T -= jax.lax.axis_index(settings.axis_name).astype(jnp.int32) * table_VD.shape[0]
    nothing_T = jnp.full(token_T.shape, -jnp.inf, jnp.float32)
    operands = Operands(
        hidden_TD, table_VD.astype(hidden_TD.dtype), token_T, nothing_T, temperature.astype(jnp.float32).reshape(1)
    )
    if settings.truncated:
        operands = operands._replace(threshold_T=_threshold(settings, operands, floor_T.astype(jnp.float32)))
    return _token_logprob(settings, operands)


def _threshold(settings: Settings, operands: Operands, floor_T: Float32[Array, "T"]) -> Float32[Array, "T"]:
    """Floors as logits: they are relative to all words, which cost a sweep, unless there is no floor."""
    fixed = Operands(*map(jax.lax.stop_gradient, operands))
    whole = settings._replace(truncated=False)
    return jax.lax.cond(
        jnp.any(floor_T > -jnp.inf),
        lambda: jax.lax.stop_gradient(floor_T) + _forward(whole, fixed)[2],
        lambda: fixed.threshold_T,
    )


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
    settings: Settings, operands: Operands
) -> tuple[Float32[Array, "T"], Float32[Array, "T"], Float32[Array, "T"]]:
    """(log-prob, entropy, log-sum-exp over what is kept)."""
    tile = _tile("sweep", operands.hidden_TD.dtype)
    length, vocab = operands.hidden_TD.shape[0], operands.table_VD.shape[0]
    shares = min(max(PROGRAMS // math.ceil(length / tile.tokens), 1), math.ceil(vocab / tile.words))
    out_shape = (jax.ShapeDtypeStruct((shares, length), jnp.float32),) * 4
    peak, total, moment, token_logit = _launch(
        "sweep", *operands, out_shape=out_shape, tile=tile, columns=shares, settings=settings
    )
    highest_T = peak.max(axis=0)
    if settings.axis_name is not None:
        highest_T = jax.lax.pmax(highest_T, settings.axis_name)
    weight = jnp.exp2(peak - highest_T)
    sums = (weight * total, weight * (moment + total * (peak - highest_T)), token_logit)
    total_T, moment_T, token_logit_T = _over_devices(settings, tuple(part.sum(axis=0) for part in sums))
    ln_2 = jnp.float32(math.log(2))
    lse_T = ln_2 * (highest_T + jnp.log2(total_T))
    return ln_2 * token_logit_T - lse_T, ln_2 * (jnp.log2(total_T) - moment_T / total_T), lse_T


def _over_devices(settings: Settings, parts: Any) -> Any:
    """Sums over the parts of the vocabulary that devices hold."""
    return parts if settings.axis_name is None else jax.lax.psum(parts, settings.axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_logprob(settings: Settings, operands: Operands) -> tuple[Float32[Array, "T"], Float32[Array, "T"]]:
    return _forward(settings, operands)[:2]


def _token_logprob_fwd(settings: Settings, primals: Any) -> Any:
    operands = jax.tree.map(lambda leaf: leaf.value, primals, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    if primals.temperature_1.perturbed:
        raise ValueError("token_logprob has no gradient with respect to the temperature")
    if primals.table_VD.perturbed and settings.axis_name is not None:
        raise ValueError(f"token_logprob has no gradient of a table that is sharded over {settings.axis_name!r}")
    logp_T, entropy_T, lse_T = _forward(settings, operands)
    # zeros to which the table's gradient is added, where there is one
    table_gradient_VD = jnp.zeros(operands.table_VD.shape, jnp.float32) if primals.table_VD.perturbed else None
    return (logp_T, entropy_T), (operands, lse_T, entropy_T, table_gradient_VD)


def _token_logprob_bwd(settings: Settings, residuals: Any, upstream: tuple[Any, Any]) -> tuple[Operands]:
    operands, lse_T, entropy_T, table_gradient_VD = residuals
    hidden_TD, table_VD, token_T, threshold_T, temperature_1 = operands
    length, width = hidden_TD.shape
    chunk = min(CHUNK, length)
    tile = _tile("logit_gradient", hidden_TD.dtype)
    exact: dict[str, Any] = {"preferred_element_type": jnp.float32}
    if hidden_TD.dtype == jnp.float32:
        exact["precision"] = jax.lax.Precision.HIGHEST  # else a GPU rounds the factors to ten bits

    def cut(array: Array) -> Array:
        padding = ((0, -length % chunk),) + ((0, 0),) * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(-1, chunk, *array.shape[1:])

    def chunk_gradient(table_gradient_VD: Array | None, parts: tuple[Array, ...]) -> tuple[Array | None, Array]:
        hidden_CD, token_C, threshold_C, *statistics = parts
        gradient_CV = _launch(
            "logit_gradient",
            *(hidden_CD, table_VD, token_C, threshold_C, temperature_1, *statistics),
            out_shape=jax.ShapeDtypeStruct((chunk, table_VD.shape[0]), hidden_CD.dtype),
            tile=tile,
            columns=math.ceil(table_VD.shape[0] / tile.words),
            settings=settings,
        )
        if table_gradient_VD is not None:
            table_gradient_VD += jnp.einsum("CV,CD->VD", gradient_CV, hidden_CD, **exact)
        product_CD = _over_devices(settings, jnp.einsum("CV,VD->CD", gradient_CV, table_VD, **exact))
        return table_gradient_VD, product_CD.astype(hidden_CD.dtype)

    upstream_T = (jnp.zeros(ct.shape, ct.dtype) if isinstance(ct, SymbolicZero) else ct for ct in upstream)
    # A padded token has logits of 0, a log-sum-exp of 0 and no upstream gradient: it gives zeros.
    parts = (hidden_TD, token_T, threshold_T, lse_T, entropy_T, *upstream_T)
    table_gradient_VD, gradient = jax.lax.scan(chunk_gradient, table_gradient_VD, tuple(cut(part) for part in parts))
    if table_gradient_VD is not None:
        table_gradient_VD = table_gradient_VD.astype(table_VD.dtype)
    return (Operands(gradient.reshape(-1, width)[:length], table_gradient_VD, None, None, None),)  # type: ignore


_token_logprob.defvjp(_token_logprob_fwd, _token_logprob_bwd, symbolic_zeros=True)
