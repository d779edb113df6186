"""FLOPs of a traced program: its matrix products, and for each Pallas kernel what its operation has to multiply.

A product of [M, K] and [K, N] is 2 M K N; nothing else is counted.  XLA counts a loop's body once and a kernel not at
all, so that its own count is of no use here.  A kernel counts by what is asked of it, not by what it does:

    attention       2 products over the pairs of query and key that see each other, causal and within the window; the
                    gradient 5: it computes the scores anew.  The causal kernel is counted without a window
    log-probs       1 product of hidden states and table, 2 with the slope that the gradient needs
    decoding        2 products over all slots of the caches it is given, filled or not
    sampling        1 product of hidden states and table
"""

import math
from collections.abc import Iterator
from typing import Any

ATTENTION = {
    "causal_attention": 2,
    "causal_attention_gradient": 5,
    "window_attention_forward": 2,
    "window_attention_backward": 5,
}
HEADS = {"token_logprob_forward": 1, "token_logprob": 2, "token_logprob_tilt": 3, "sample_head": 1}
DECODING = ("append_attention", "grouped_decode")
NOTHING = ("causal_first_blocks",)


def count(jaxpr: Any, *, window: int = 0) -> int:
    """FLOPs of a jaxpr on all devices together; local attention sees `window` keys.  A `while` counts one round.

    What nothing reads is not counted: where a gradient keeps what a kernel gave, the kernel still stands there.
    """
    total, read = 0, {var for var in jaxpr.outvars if not hasattr(var, "val")}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or read.intersection(eqn.outvars):
            total += _of(eqn, window)
            read.update(var for var in eqn.invars if not hasattr(var, "val"))
    return total


def _of(eqn: Any, window: int) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        return _product(eqn)
    if name == "pallas_call":
        return _kernel(eqn, window)
    if name == "cond":
        return max(count(branch.jaxpr, window=window) for branch in eqn.params["branches"])
    inside = sum(count(inner, window=window) for inner in _programs(eqn))
    if name == "scan":
        return inside * eqn.params["length"]
    if name == "shard_map":
        return inside * _copies(eqn)
    return inside


def _programs(eqn: Any) -> Iterator[Any]:
    """The programs inside an equation; a function with a gradient of its own is counted as it runs forward."""
    for value in eqn.params.values():
        for part in value if isinstance(value, list | tuple) else [value]:
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner


def _copies(eqn: Any) -> int:
    """How many devices run the body of a `shard_map`, each on its part."""
    mesh, axes = eqn.params["mesh"], eqn.params.get("newly_manual_axes", eqn.params.get("manual_axes"))
    assert axes is not None, "this JAX names the axes of a shard_map otherwise"
    return math.prod(mesh.shape[axis] for axis in axes)


def _product(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _kernel(eqn: Any, window: int) -> int:
    """By the name of the call and the shapes of its operands."""
    name = eqn.params["name"]
    shapes = [var.aval.shape for var in eqn.invars]
    if name in NOTHING:
        return 0
    if name in ATTENTION:
        batch, heads, length, width = next(shape for shape in shapes if len(shape) == 4)
        reach = min(window or length, length) if name.startswith("window") else length
        pairs = reach * (reach + 1) // 2 + (length - reach) * reach
        return ATTENTION[name] * 2 * batch * heads * pairs * width
    if name in HEADS:
        (tokens, width), (words, _) = [shape for shape in shapes if len(shape) == 2 and shape[0] > 1][:2]
        return HEADS[name] * 2 * tokens * width * words
    if name in DECODING:
        rows, heads, _ = next(shape for shape in shapes if len(shape) == 3)
        cached = [shape for shape in shapes if len(shape) == 5]
        return sum(2 * rows * heads * slots * width for _, _, slots, _, width in cached)
    raise ValueError(f"the kernel {name!r} has no count of FLOPs: give it one in {__name__}")
