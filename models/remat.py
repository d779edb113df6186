"""What a layer keeps of its forward pass for the gradient, by name; the rest is computed again, layer by layer.

The policies from the most memory and the least to compute again, to the least memory:

    none        no layer is computed again: all that JAX keeps, float32 copies included
    products    every product is kept; norms, RoPE and the activation are computed again
    gate        but for the product `up` of the feed-forward
    narrow      but for both products of the feed-forward's width
    attention   queries, keys, values, context and log-sums: the rest of the layer again, the attention not
    context     context and log-sums alone: the projections too
    full        the layer's input alone: the whole layer, its attention too, and the feed-forward by parts of the text

Names are given where the arrays come to be: `keep` here, and the residuals of kernels/flash_attention.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import ad_checkpoint
from jaxtyping import Array, Float

from thinkfirst.kernels.flash_attention import residuals

Name = Literal["none", "products", "gate", "narrow", "attention", "context", "full"]
NAMES: tuple[Name, ...] = get_args(Name)
Setting = Literal["auto", "none", "products", "gate", "narrow", "attention", "context", "full"]  # what a stage may ask
PARTS = 8  # at most, of a text
PART = 128  # tokens of a part at least: fewer would leave the matrix unit waiting for the weights
_CONTEXT = residuals.NAMES
_ATTENTION = (*_CONTEXT, "query", "key", "value")
_NARROW = (*_ATTENTION, "output", "down")
KEPT: dict[Name, tuple[str, ...]] = {
    "products": (*_NARROW, "gate", "up"),
    "gate": (*_NARROW, "gate"),
    "narrow": _NARROW,
    "attention": _ATTENTION,
    "context": _CONTEXT,
    "full": (),
}


def keep(x: jax.Array, name: str) -> jax.Array:
    """x, under the name by which a policy keeps it."""
    return ad_checkpoint.checkpoint_name(x, name)


def check(setting: str) -> None:
    """ValueError lists the settings there are."""
    if setting not in (known := get_args(Setting)):
        raise ValueError(f"remat={setting!r}: there is {', '.join(known)}")


def by_tokens(function: Callable[[jax.Array], jax.Array], name: Name) -> Callable[[jax.Array], jax.Array]:
    """`function`, which takes every token alone; under "full" it takes the text in equal parts.

    The arrays of the feed-forward's width are most of what the gradient of one layer has alive.  A part keeps its input
    alone, which the layer has anyway: nothing is computed more often than without parts.
    """

    def run(x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        rows, length, width = x_BTD.shape
        count = max(
            (count for count in range(1, PARTS + 1) if length % count == 0 and length // count >= PART), default=1
        )
        if count == 1:
            return function(x_BTD)
        parts = x_BTD.reshape(rows, count, length // count, width).swapaxes(0, 1)
        return jax.lax.map(jax.checkpoint(function), parts).swapaxes(0, 1).reshape(x_BTD.shape)

    return run if name == "full" else function


def layer(function: Callable[..., Any], name: Name) -> Callable[..., Any]:
    """`function` of (stream, turns, factors), of which the policy `name` keeps its part for the gradient."""
    if name == "none":
        return function

    def run(x_BTD: jax.Array, turns: Any, factors: Any) -> Any:
        return function(*_left_together(x_BTD, turns, factors))

    policy = jax.checkpoint_policies.save_only_these_names(*KEPT[name])
    return jax.checkpoint(run, policy=policy)


@jax.custom_vjp
def _left_together(x_BTD: jax.Array, turns: Any, factors: Any) -> tuple[jax.Array, Any, Any]:
    """Its operands; the gradient of the first is not there before those of the factors are.

    Else XLA puts the factors' gradients off, and keeps for them what several layers have computed again.
    """
    return x_BTD, turns, factors


def _left_together_forward(*operands: Any) -> tuple[Any, None]:
    return operands, None


def _left_together_backward(_: None, gradients: Any) -> Any:
    x_BTD, turns, factors = gradients
    firsts = [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(jax.lax.optimization_barrier(factors))]
    # 0, and the compiler does not know that: whatever the gradient is, it is not above infinity
    nothing = sum(((first > jnp.inf).astype(x_BTD.dtype) for first in firsts), jnp.zeros((), x_BTD.dtype))
    return x_BTD + nothing, turns, factors


_left_together.defvjp(_left_together_forward, _left_together_backward)
