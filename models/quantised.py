"""Frozen weights as 8- or 4-bit integers and scales, W ~ q s: symmetric, no zero point, rounded to the nearest.

    int8    q in [-127, 127], one s for each output of the einsum: the largest |W| over the axes it contracts, / 127
    int4    q in [-7, 7], one s for each BLOCK neighbours along the last of those axes: the largest |W| of them, / 7

QLoRA (Dettmers et al., arXiv 2305.14314) trains an adapter over such a base; its NormalFloat codes are left out, for a
TPU has integers.  Integers up to 127 are exact in bfloat16, so the int8 product is taken over them and scaled after;
int4 weights are scaled where they are used, inside the layer.  The embedding, which also reads tokens out, and the
norms stay as they were stored.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thinkfirst.models import config as model_config
from thinkfirst.models import lora

LARGEST = {"int8": 127, "int4": 7}
BLOCK = 32  # 4 bits and a bfloat16 scale: 4.5 bits a weight
_SCALES = {"int8": jnp.float32, "int4": jnp.bfloat16}


def letters(spec: str, kind: model_config.BaseDtype) -> str:
    """Axes of the scales of an einsum's weight; a small letter stands for the blocks of an axis."""
    parts = lora.split(spec)
    if kind == "int8":
        return parts.produced
    blocked = parts.contracted[-1]
    return parts.weight.replace(blocked, blocked.lower())


def quantise(weight: jax.Array, spec: str, kind: model_config.BaseDtype) -> dict[str, jax.Array]:
    """{"weight": q, "scale": s} of an einsum's weight, or of a stack of them."""
    parts = lora.split(spec)
    stacked = weight.ndim - len(parts.weight)
    axes = [stacked + parts.weight.index(letter) for letter in parts.contracted]
    wide = weight.astype(jnp.float32)
    if kind == "int8":
        largest = jnp.abs(wide).max(axis=axes, keepdims=True)
    else:
        largest = jnp.abs(_blocked(wide, axes[-1])).max(axis=axes[-1] + 1, keepdims=True)
    scale = (largest / LARGEST[kind]).astype(_SCALES[kind])
    step = jnp.where(scale == 0, 1, scale).astype(jnp.float32)
    whole = wide if kind == "int8" else _blocked(wide, axes[-1])
    rounded = jnp.clip(jnp.round(whole / step), -LARGEST[kind], LARGEST[kind]).astype(kind).reshape(weight.shape)
    return {"weight": rounded, "scale": scale.squeeze(axes if kind == "int8" else axes[-1] + 1)}


def product(spec: str, x: jax.Array, weight: jax.Array, scale: jax.Array) -> jax.Array:
    """x . W of quantised weights, in the dtype of x."""
    if weight.dtype == jnp.int8:
        parts = lora.split(spec)
        y = jnp.einsum(spec, x, weight.astype(x.dtype)).astype(jnp.float32)
        return jnp.einsum(f"{parts.result},{parts.produced}->{parts.result}", y, scale).astype(x.dtype)
    return jnp.einsum(spec, x, _scaled(weight, spec, scale, x.dtype))


def dequantise(weight: jax.Array, spec: str, scale: jax.Array) -> jax.Array:
    """q s in float32, of one weight."""
    parts = lora.split(spec)
    if weight.dtype == jnp.int8:
        return jnp.einsum(f"{parts.weight},{parts.produced}->{parts.weight}", weight.astype(jnp.float32), scale)
    return _scaled(weight, spec, scale, jnp.float32)


@functools.cache
def quantiser(
    spec: str, kind: model_config.BaseDtype, weight: jax.sharding.Sharding, scale: jax.sharding.Sharding
) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """`quantise` as a program, its results laid out as given."""
    where = {"weight": weight, "scale": scale}
    return jax.jit(functools.partial(quantise, spec=spec, kind=kind), out_shardings=where)


def _scaled(weight: jax.Array, spec: str, scale: jax.Array, dtype: Any) -> jax.Array:
    axis = lora.split(spec).weight.index(lora.split(spec).contracted[-1])
    blocks = _blocked(weight.astype(dtype), axis, scale.shape[axis])
    return (blocks * jnp.expand_dims(scale, axis + 1).astype(dtype)).reshape(weight.shape)


def _blocked(weight: jax.Array, axis: int, count: int = 0) -> jax.Array:
    """The axis as [blocks, neighbours]: `count` blocks, or as many as of BLOCK or the largest size that divides it."""
    size = weight.shape[axis]
    count = count or size // math.gcd(size, BLOCK)
    return weight.reshape(*weight.shape[:axis], count, size // count, *weight.shape[axis + 1 :])
