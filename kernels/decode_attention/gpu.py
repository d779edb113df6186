"""Attention of decoding on a GPU: one Triton kernel, called through jax-triton, which is imported when it is run.

Grid: shares, K, B / together.  Held: queries [together * J padded to 16, H] of one group of heads.  Streams by: key,
value [slots, H].  Carried: context [together * J, H], max and sum.  The tiles of slots that can be visible (written,
within the window) are dealt out evenly to the shares, whose sums [B, shares, N, H] are combined outside; there are as
many shares as fill the multiprocessors.

A row's own cache is read by that row alone.  A prompt is read once for as many rows of its group as fill the 16 rows of
a product, which a single row would leave empty: rows are taken in the order of their slabs, whatever their places.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from thinkfirst.kernels.decode_attention import reference

SLOTS = (64, 16)  # of a tile, where products are of two-byte numbers, and of float32; neither spills
WARPS, STAGES = 4, 2
PROGRAMS = 264  # two for each multiprocessor of an H100 or H200
WIDTHS = (16, 32, 64, 128, 256)
LEAST_ROWS = 16  # of a product


class Settings(NamedTuple):
    """What is fixed when the kernel is compiled."""

    scale: float
    window: int
    soft_cap: float


class Slabs(NamedTuple):
    """Caches stacked by layer, [L, slabs, S, K, H], and what each row reads of them."""

    pair: tuple[Array, Array]
    layer: Int[Array, ""]
    slab_B: Int[Array, "B"]
    newest_B: Int[Array, "B"]  # position of the newest token in the slab; negative: the row looks at nothing
    ahead_B: Int[Array, "B"]  # how far behind that one the row's own token is


Sums = tuple[Float32[Array, "B C N H"], Float32[Array, "B C N"], Float32[Array, "B C N"]]


def supports(query_BNH: Float[Array, "B N H"], cache: Any) -> bool:
    """Whether the kernel can run on queries and a cache [..., K, H] of these shapes and dtypes, without scales."""
    stack, *scales = jax.tree.leaves(cache)
    if scales:
        return False
    even = query_BNH.shape[1] % stack.shape[-2] == 0
    same = query_BNH.dtype == stack.dtype and query_BNH.dtype in (jnp.bfloat16, jnp.float16, jnp.float32)
    return even and same and query_BNH.shape[2] in WIDTHS


def append_attention(
    query_BNH: Float[Array, "B N H"],
    new: tuple[Float[Array, "B K H"], Float[Array, "B K H"]],
    ring: reference.Pair,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
    *,
    scale: float,
    window: int,
    soft_cap: float,
) -> tuple[Float[Array, "B N H"], reference.Pair]:
    """Context of each row's new token, written first (by XLA, in place) to one layer of a stack; and the rings."""
    position_B = jnp.maximum(position_B, 0)
    ring = reference.written(new, ring, layer, position_B)
    own = _own(ring, layer, position_B)
    return _combined(query_BNH, [_sums(query_BNH, own, Settings(scale, window, soft_cap), together=1)]), ring


def grouped(
    query_BNH: Float[Array, "B N H"],
    new: tuple[Float[Array, "B K H"], Float[Array, "B K H"]],
    own: reference.Pair,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
    *,
    prompt: tuple[Float[Array, "L P T K H"], Float[Array, "L P T K H"]],
    length_P: Int[Array, "P"],
    group_B: Int[Array, "B"],
    scale: float,
    window: int,
    soft_cap: float,
) -> tuple[Float[Array, "B N H"], reference.Pair]:
    """Context of each row's new token over prompt `group_B[b]` and its own tokens, and the own caches.

    An idle row, at position -1, is one without a prompt at position 0.
    """
    length_B = jnp.where(position_B < 0, 0, length_P[group_B])
    position_B = jnp.maximum(position_B, 0)
    own = reference.written(new, own, layer, position_B)
    settings = Settings(scale, window, soft_cap)
    together = max(1, LEAST_ROWS // (query_BNH.shape[1] // new[0].shape[1]))
    slab_B = jnp.clip(group_B, 0, prompt[0].shape[1] - 1)
    prompts = Slabs(prompt, layer, slab_B, length_B - 1, position_B + 1)
    sums = [
        _sums(query_BNH, prompts, settings, together=together),
        _sums(query_BNH, _own(own, layer, position_B), settings, together=1),
    ]
    return _combined(query_BNH, sums), own


def _own(pair: Any, layer: Int[Array, ""], position_B: Int[Array, "B"]) -> Slabs:
    """Each row's own cache, which ends with its own token."""
    return Slabs(pair, layer, jnp.arange(position_B.shape[0]), position_B, jnp.zeros_like(position_B))


def _sums(query_BNH: Float[Array, "B N H"], slabs: Slabs, settings: Settings, *, together: int) -> Sums:
    """(context, largest score, sum of weights) of each share of the slots; `together` rows in one program."""
    if not supports(query_BNH, slabs.pair[0]):
        cache = ", ".join(f"{x.dtype}{x.shape}" for x in jax.tree.leaves(slabs.pair[0]))
        raise ValueError(
            f"no kernel for queries {query_BNH.dtype}{query_BNH.shape} on {cache}: "
            f"the width of a head must be one of {WIDTHS}, the dtypes equal, the heads a multiple of the groups"
        )
    import jax_triton  # deferred: an optional dependency that needs a GPU build of JAX

    from thinkfirst.kernels.decode_attention import triton_source

    batch, heads, width = query_BNH.shape
    slots, groups = slabs.pair[0].shape[2:4]
    blocks = math.ceil(batch / together)
    tile = SLOTS[query_BNH.dtype == jnp.float32]
    shares = min(math.ceil(PROGRAMS / (blocks * groups)), math.ceil(slots / tile))
    order_B = jnp.argsort(slabs.slab_B) if together > 1 else jnp.arange(batch)
    context, peak, total = jax_triton.triton_call(
        query_BNH,
        *slabs.pair,
        *(x.astype(jnp.int32) for x in (slabs.layer.reshape(1), *slabs[2:], order_B)),
        kernel=triton_source.share_of_slots,
        name="decode_attention",
        out_shape=(
            jax.ShapeDtypeStruct((batch, shares, heads, width), jnp.float32),
            *(jax.ShapeDtypeStruct((batch, shares, heads), jnp.float32),) * 2,
        ),
        grid=(shares, groups, blocks),
        num_warps=WARPS,
        num_stages=STAGES,
        BATCH=batch,
        SLABS=slabs.pair[0].shape[1],
        CACHE=slots,
        HEADS=heads,
        GROUPS=groups,
        WIDTH=width,
        WINDOW=settings.window,
        SCALE=settings.scale,
        SOFT_CAP=settings.soft_cap,
        TOGETHER=together,
        ROWS=max(LEAST_ROWS, 2 ** math.ceil(math.log2(together * (heads // groups)))),
        SLOTS=tile,
        PRECISION="ieee" if query_BNH.dtype == jnp.float32 else "tf32",
    )
    return context, peak, total


def _combined(query_BNH: Float[Array, "B N H"], sums: list[Sums]) -> Float[Array, "B N H"]:
    """The context from the sums of every share; zeros for a row that looks at nothing."""
    context, peak, total = (jnp.concatenate(parts, axis=1) for parts in zip(*sums, strict=True))
    weight = jnp.exp2(peak - peak.max(axis=1, keepdims=True))
    total_BN = (weight * total).sum(axis=1)
    context_BNH = (weight[..., None] * context).sum(axis=1) / jnp.maximum(total_BN, 1e-30)[..., None]
    return context_BNH.astype(query_BNH.dtype)
