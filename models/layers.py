"""The parts of a Gemma block: einsum with optional adapter, RMSNorm, attention, feed-forward.

Adapter factors come in as plain arguments (see `models/lora.py`); a module holds base weights only.  The stream has the
dtype the model computes in; a weight stays as it was stored and is cast where it is used.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from thinkfirst.kernels import prologue
from thinkfirst.models import config as model_config
from thinkfirst.models import lora, quantised, remat

# q, k, v as projected, and what queries and keys go through first -> context, cache
Attend = Callable[[jax.Array, jax.Array, jax.Array, prologue.Prologue], tuple[jax.Array, Any]]
Turns = tuple[jax.Array, jax.Array]  # sine and cosine of RoPE's angles, [B, T, H / 2]


class Einsum(nnx.Module):
    """A weight and the einsum that applies it, e.g. "BTD,DNH->BTNH"; integers have their scales beside them."""

    def __init__(self, spec: str, shape: tuple[int, ...], config: model_config.GemmaConfig, *, rngs: nnx.Rngs) -> None:
        self.spec = spec
        letters = lora.split(spec)
        fan_in = 1
        for letter, size in zip(letters.weight, shape, strict=True):
            fan_in *= size if letter in letters.contracted else 1
        drawn = (jax.random.normal(rngs.params(), shape) * fan_in**-0.5).astype(config.dtype)
        if config.base_dtype == "stored":
            self.weight = nnx.Param(drawn)
        else:
            held = quantised.quantise(drawn, spec, config.base_dtype)
            self.weight, self.scale = nnx.Param(held["weight"]), nnx.Param(held["scale"])

    def __call__(self, x: Float[Array, "..."], factors: lora.Factors | None) -> Float[Array, "..."]:
        """x . W, plus (x . A) . B when factors are given."""
        weight = self.weight[...]
        if hasattr(self, "scale"):
            y = quantised.product(self.spec, x, weight, self.scale[...])
        else:
            y = jnp.einsum(self.spec, x, weight.astype(x.dtype))
        return y if factors is None else y + lora.delta(self.spec, x, factors).astype(y.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * (1 + scale), in float32."""

    def __init__(self, width: int, *, letter: str = "D", epsilon: float, dtype: str) -> None:
        self.letter, self.epsilon = letter, epsilon
        self.scale = nnx.Param(jnp.zeros((width,), dtype))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.epsilon)
        return (normed * (1.0 + self.scale[...].astype(jnp.float32))).astype(x.dtype)


def segment_positions(segment_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Place of every token in its segment, from 0: rows may be padded on either side, or packed."""
    place_T = jnp.arange(segment_BT.shape[1])
    starts_BT = jnp.pad(segment_BT[:, 1:] != segment_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return place_T - jax.lax.cummax(jnp.where(starts_BT, place_T, 0), axis=1)


class Attention(nnx.Module):
    """Projections around an attention kernel, which the caller hands in as `attend`."""

    def __init__(self, config: model_config.GemmaConfig, *, rngs: nnx.Rngs) -> None:
        self.epsilon = config.norm_epsilon
        d, n, k, h = config.width, config.num_heads, config.num_kv_heads, config.head_dim
        self.query = Einsum("BTD,DNH->BTNH", (d, n, h), config, rngs=rngs)
        self.key = Einsum("BTD,DKH->BTKH", (d, k, h), config, rngs=rngs)
        self.value = Einsum("BTD,DKH->BTKH", (d, k, h), config, rngs=rngs)
        self.output = Einsum("BTNH,NHD->BTD", (n, h, d), config, rngs=rngs)
        if config.query_key_norm:
            self.query_norm = RMSNorm(h, letter="H", epsilon=config.norm_epsilon, dtype=config.dtype)
            self.key_norm = RMSNorm(h, letter="H", epsilon=config.norm_epsilon, dtype=config.dtype)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], turns: Turns, factors: lora.Tree, attend: Attend
    ) -> tuple[Float[Array, "B T D"], Any]:
        query_BTNH = remat.keep(self.query(x_BTD, factors.get("query")), "query")
        key_BTKH = remat.keep(self.key(x_BTD, factors.get("key")), "key")
        value_BTKH = remat.keep(self.value(x_BTD, factors.get("value")), "value")
        normed = hasattr(self, "query_norm")
        first = prologue.Prologue(
            query_scale_H=self.query_norm.scale[...] if normed else None,
            key_scale_H=self.key_norm.scale[...] if normed else None,
            sin=turns[0],
            cos=turns[1],
            epsilon=self.epsilon,
        )
        context_BTNH, cache = attend(query_BTNH, key_BTKH, value_BTKH, first)
        return remat.keep(self.output(context_BTNH, factors.get("output")), "output"), cache


class FeedForward(nnx.Module):
    """down(gelu(gate(x)) * up(x)), gelu in its tanh form."""

    def __init__(self, config: model_config.GemmaConfig, *, rngs: nnx.Rngs) -> None:
        d, f = config.width, config.ff_width
        self.gate = Einsum("BTD,DF->BTF", (d, f), config, rngs=rngs)
        self.up = Einsum("BTD,DF->BTF", (d, f), config, rngs=rngs)
        self.down = Einsum("BTF,FD->BTD", (f, d), config, rngs=rngs)

    def __call__(self, x_BTD: Float[Array, "B T D"], factors: lora.Tree) -> Float[Array, "B T D"]:
        gate_BTF = remat.keep(self.gate(x_BTD, factors.get("gate")), "gate")
        up_BTF = remat.keep(self.up(x_BTD, factors.get("up")), "up")
        hidden_BTF = jax.nn.gelu(gate_BTF, approximate=True) * up_BTF
        return remat.keep(self.down(hidden_BTF, factors.get("down")), "down")


class Block(nnx.Module):
    """Attention, then feed-forward, each between a norm before and a norm after, each added to the stream."""

    def __init__(self, config: model_config.GemmaConfig, *, rngs: nnx.Rngs) -> None:
        norm = lambda: RMSNorm(config.width, epsilon=config.norm_epsilon, dtype=config.dtype)  # noqa: E731
        self.attention_norm, self.attention_post_norm = norm(), norm()
        self.ff_norm, self.ff_post_norm = norm(), norm()
        self.attention = Attention(config, rngs=rngs)
        self.ff = FeedForward(config, rngs=rngs)

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        turns: Turns,
        factors: lora.Tree,
        attend: Attend,
        *,
        keeps: remat.Name = "none",
    ) -> tuple[Float[Array, "B T D"], Any]:
        def fed_forward(x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
            return x_BTD + self.ff_post_norm(self.ff(self.ff_norm(x_BTD), factors.get("ff", {})))

        normed_BTD = self.attention_norm(x_BTD)
        attended_BTD, cache = self.attention(normed_BTD, turns, factors.get("attention", {}), attend)
        x_BTD = x_BTD + self.attention_post_norm(attended_BTD)
        return remat.by_tokens(fed_forward, keeps)(x_BTD), cache
