"""Attention of decoding on a GPU: one Triton kernel, called through jax-triton, which is imported when it is run.

Grid: shares, K, B.  Held: query [J padded to 16, H] of one group.  Streams by: key, value [slots, H].  Carried: context
[J, H], max and sum.  The tiles of slots that can be visible (written, within the window) are dealt out evenly to the
shares, whose sums [B, shares, N, H] are combined outside; there are as many shares as fill the multiprocessors.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SLOTS = (64, 16)  # of a tile, where products are of two-byte numbers, and of float32; neither spills
WARPS, STAGES = 4, 2
PROGRAMS = 264  # two for each multiprocessor of an H100 or H200
WIDTHS = (16, 32, 64, 128, 256)


def supports(query_BNH: Float[Array, "B N H"], key_BSKH: Float[Array, "B S K H"]) -> bool:
    """Whether the kernel can run on operands of these shapes and dtypes."""
    even = query_BNH.shape[1] % key_BSKH.shape[2] == 0
    same = query_BNH.dtype == key_BSKH.dtype and query_BNH.dtype in (jnp.bfloat16, jnp.float16, jnp.float32)
    return even and same and query_BNH.shape[2] in WIDTHS


def attention(
    query_BNH: Float[Array, "B N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    position_B: Int[Array, "B"],
    *,
    scale: float,
    window: int,
    soft_cap: float,
) -> Float[Array, "B N H"]:
    """Context of the newest token of each row, as `reference.attention` defines it; no gradient."""
    if not supports(query_BNH, key_BSKH):
        raise ValueError(
            f"no kernel for queries {query_BNH.dtype}{query_BNH.shape} on keys {key_BSKH.dtype}{key_BSKH.shape}: "
            f"the width of a head must be one of {WIDTHS}, the dtypes equal, the heads a multiple of the groups"
        )
    import jax_triton  # deferred: an optional dependency that needs a GPU build of JAX

    from thinkfirst.kernels.decode_attention import triton_source

    batch, heads, width = query_BNH.shape
    slots, groups = key_BSKH.shape[1:3]
    tile = SLOTS[query_BNH.dtype == jnp.float32]
    shares = min(math.ceil(PROGRAMS / (batch * groups)), math.ceil(slots / tile))
    context, peak, total = jax_triton.triton_call(
        query_BNH,
        key_BSKH,
        value_BSKH,
        position_B.astype(jnp.int32),
        kernel=triton_source.share_of_slots,
        name="decode_attention",
        out_shape=(
            jax.ShapeDtypeStruct((batch, shares, heads, width), jnp.float32),
            *(jax.ShapeDtypeStruct((batch, shares, heads), jnp.float32),) * 2,
        ),
        grid=(shares, groups, batch),
        num_warps=WARPS,
        num_stages=STAGES,
        CACHE=slots,
        HEADS=heads,
        GROUPS=groups,
        WIDTH=width,
        WINDOW=window,
        SCALE=scale,
        SOFT_CAP=soft_cap,
        ROWS=max(16, 2 ** math.ceil(math.log2(heads // groups))),
        SLOTS=tile,
        PRECISION="ieee" if query_BNH.dtype == jnp.float32 else "tf32",
    )
    weight = jnp.exp2(peak - peak.max(axis=1, keepdims=True))
    context_BNH = (weight[..., None] * context).sum(axis=1) / (weight * total).sum(axis=1)[..., None]
    return context_BNH.astype(query_BNH.dtype)
