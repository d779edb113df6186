"""Attention of decoding: checks, then the implementation."""

from jaxtyping import Array, Float, Int

from thinkfirst.kernels.decode_attention import reference


def attention(
    query_BNH: Float[Array, "B N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    position_B: Int[Array, "B"],
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
) -> Float[Array, "B N H"]:
    """One token per row against a ring cache that already holds it at slot `position % S`."""
    heads, groups = query_BNH.shape[1], key_BSKH.shape[2]
    if heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key/value heads evenly")
    if window < 0 or soft_cap < 0:
        raise ValueError(f"window and soft_cap must not be negative: {window=} {soft_cap=}")
    return reference.attention(
        query_BNH, key_BSKH, value_BSKH, position_B, scale=scale, window=window, soft_cap=soft_cap
    )
