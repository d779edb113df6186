"""What stands between the projections of queries and keys and their use: RMSNorm over the width of a head, then RoPE.

    y = x / rms(x) * (1 + scale)          per head, left out where there is no scale (Gemma 2)
    first, second = halves of y           out = [first cos - second sin, second cos + first sin]

RMSNorm: Zhang and Sennrich, arXiv 1910.07467; rotary embedding: Su et al., arXiv 2104.09864.  All of it is float32 and
rounded once, at the end.  `apply` says what it means for whole arrays; `on_tile` and `pulled_back` are the same
arithmetic, and its gradient, on the rows that a kernel has at hand.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

QUERY, KEY = 0, 1
LANES = 128


@flax.struct.dataclass
class Prologue:
    """What queries and keys go through; `sin` and `cos` are [B, T, H / 2], made by `turns` once per RoPE base."""

    query_scale_H: Array | None
    key_scale_H: Array | None
    sin: Array
    cos: Array
    epsilon: float = flax.struct.field(pytree_node=False)


def turns(
    position_BT: Int[Array, "B T"], width: int, *, base: float, factor: float
) -> tuple[Float32[Array, "B T _"], Float32[Array, "B T _"]]:
    """Sine and cosine of every angle of RoPE, for heads of `width`; positions divided by `factor`."""
    half = width // 2
    frequency_H = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (position_BT.astype(jnp.float32) / factor)[:, :, None] * frequency_H
    return jnp.sin(angle), jnp.cos(angle)


def apply(
    x_BTNH: Float[Array, "B T N H"],
    scale_H: Float[Array, "H"] | None,
    sin: Float32[Array, "B T _"],
    cos: Float32[Array, "B T _"],
    epsilon: float,
) -> Float[Array, "B T N H"]:
    """Queries or keys after norm and rotation, in the dtype they came in."""
    gain = None if scale_H is None else 1.0 + scale_H.astype(jnp.float32)
    return on_tile(x_BTNH, gain, sin[:, :, None], cos[:, :, None], epsilon).astype(x_BTNH.dtype)


def checked(prologue: Prologue, query_BTNH: Float[Array, "B T N H"]) -> Prologue:
    """The prologue with constant angles; ValueError where it does not belong to queries of this shape."""
    batch, length, _, width = query_BTNH.shape
    if (prologue.query_scale_H is None) != (prologue.key_scale_H is None):
        raise ValueError("a prologue norms queries and keys or neither")
    for angle in (prologue.sin, prologue.cos):
        if angle.shape != (batch, length, width // 2) or angle.dtype != jnp.float32:
            raise ValueError(f"angles of {angle.dtype}{angle.shape} do not turn queries of {query_BTNH.shape}")
    return dataclasses.replace(
        prologue, sin=jax.lax.stop_gradient(prologue.sin), cos=jax.lax.stop_gradient(prologue.cos)
    )


def both(
    prologue: Prologue, query_BTNH: Float[Array, "B T N H"], key_BTKH: Float[Array, "B T K H"]
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"]]:
    """Queries and keys after their prologue."""
    turn = prologue.sin, prologue.cos, prologue.epsilon
    return apply(query_BTNH, prologue.query_scale_H, *turn), apply(key_BTKH, prologue.key_scale_H, *turn)


def on_tile(x: Array, gain: Array | None, sin: Array, cos: Array, epsilon: float) -> Array:
    """Norm and rotation along the last axis, in float32; `gain` is 1 + scale, float32 and broadcast against `x`."""
    x = x.astype(jnp.float32)
    if gain is not None:
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * gain
    return _turned(x, sin, cos)


def _turned(x: Array, sin: Array, cos: Array) -> Array:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def pulled_back(
    x: Array, upstream: Array, gain: Array | None, sin: Array, cos: Array, *, epsilon: float
) -> tuple[Array, Array | None]:
    """Gradient of `on_tile` to `x`, and per row that to `gain`: both float32, the second None without a gain."""
    upstream = _turned(upstream, -sin, cos)
    if gain is None:
        return upstream, None
    x = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
    normed, weighted = x * inverse, upstream * gain
    return inverse * (weighted - normed * jnp.mean(normed * weighted, axis=-1, keepdims=True)), upstream * normed


class Turn(NamedTuple):
    """A prologue as operands of an attention kernel: arrays, or refs to blocks of them on chip."""

    scales: tuple[Any, ...]  # of queries and of keys, [1, H] each; none without a norm
    sin: Any  # [B, T, H / 2]
    cos: Any

    def rows(self, x: Array, which: int, rows: slice, epsilon: float) -> Array:
        """Rows of a block of queries or keys after the prologue."""
        return on_tile(x, self._gain(which), self.sin[0, rows], self.cos[0, rows], epsilon).astype(x.dtype)

    def pull(self, x: Array, upstream: Array, which: int, rows: slice, epsilon: float) -> tuple[Array, Array | None]:
        """Gradient of `rows` to `x`, and that to the scale as [8, H], to be summed over the 8."""
        turn = self.sin[0, rows], self.cos[0, rows]
        found, of_gain = pulled_back(x, upstream, self._gain(which), *turn, epsilon=epsilon)
        return found, None if of_gain is None else of_gain.reshape(-1, 8, x.shape[1]).sum(axis=0)

    def gradient(self, *by_row: Array) -> "Turn":
        """The gradients of all this from those of the scales that a kernel sums, [B, groups, 2, 8, H]; else zeros."""
        found = [part.sum(axis=(0, 1, 3))[:, None] for part in by_row]
        scales = tuple(x.astype(scale.dtype) for part in found for x, scale in zip(part, self.scales, strict=True))
        return Turn(scales, None, None)

    def _gain(self, which: int) -> Array | None:
        return 1.0 + self.scales[which][...].astype(jnp.float32) if self.scales else None


def fits_lanes(width: int) -> bool:
    """Whether the halves of a head are whole lanes, so that a kernel rotates them for nothing."""
    return width % (2 * LANES) == 0


def for_kernel(prologue: Prologue, padding: int) -> Turn:
    """The operands that a kernel takes, for texts with `padding` tokens behind them."""
    sin, cos = (jnp.pad(x, ((0, 0), (0, padding), (0, 0))) for x in (prologue.sin, prologue.cos))
    scales = prologue.query_scale_H, prologue.key_scale_H
    return Turn(tuple(scale[None] for scale in scales if scale is not None), sin, cos)
