"""Attention of training and prefill: checks, then the implementation."""

from jaxtyping import Array, Float, Int

from thinkfirst.kernels.flash_attention import reference


def attention(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segment_BT: Int[Array, "B T"],
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
) -> Float[Array, "B T N H"]:
    """Causal attention within segments; `window` keys back at most (0: all), scores capped at +-`soft_cap` (0: not)."""
    heads, groups = query_BTNH.shape[2], key_BTKH.shape[2]
    if heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key/value heads evenly")
    if window < 0 or soft_cap < 0:
        raise ValueError(f"window and soft_cap must not be negative: {window=} {soft_cap=}")
    return reference.attention(
        query_BTNH, key_BTKH, value_BTKH, segment_BT, scale=scale, window=window, soft_cap=soft_cap
    )
