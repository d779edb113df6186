"""Prints JSON about the Triton kernels of attention: `parity` errors against the reference, or `resources` on sm_90."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

import stand_in
from thinkfirst.kernels.flash_attention import api, gpu

SEGMENTS = {
    "one": lambda length: np.ones(length, np.int32),
    "many": lambda length: np.minimum(np.arange(length) // max(length // 5, 1), 4).astype(np.int32) + 1,
    "padded": lambda length: np.where(np.arange(length) < length * 2 // 3, np.arange(length) * 3 // length + 1, 0),
    "empty": lambda length: np.zeros(length, np.int32),
    "unordered": lambda length: np.array([3, 1, 3, 2])[np.arange(length) * 4 // length],
}


def case(length, heads, groups, *, width=16, dtype="float32"):
    rng = np.random.default_rng(length + heads)
    shapes = ((2, length, heads, width), (2, length, groups, width), (2, length, groups, width))
    return [np.asarray(rng.normal(size=shape), jnp.dtype(dtype)) for shape in shapes]


def difference(found, expected):
    """Largest difference as a part of the largest expected value (of 1, where a gradient vanishes)."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1.0))


def compare(length, heads, groups, window, soft_cap, *, segments=("many", "padded"), dtype="float32"):
    operands = case(length, heads, groups, dtype=dtype)
    segment = np.stack([SEGMENTS[name](length) for name in segments]).astype(np.int32)
    settings = {"scale": 0.3, "window": window, "soft_cap": soft_cap}
    upstream = case(length, heads, groups, dtype=dtype)[0] + np.asarray(0.5, jnp.dtype(dtype))

    @functools.partial(jax.jit, static_argnums=0)
    def run(backend, *operands):
        context, pullback = jax.vjp(lambda *xs: api.attention(*xs, segment, **settings, backend=backend), *operands)
        return [context, *pullback(upstream.astype(context.dtype))]

    expected = run("reference", *(x.astype(np.float32) for x in operands))
    found = run("gpu", *operands)
    errors = [difference(*pair) for pair in zip(found, expected, strict=True)]
    named = dict(zip(("context", "query", "key", "value"), errors, strict=True))
    shape = f"T={length} {heads}:{groups} window={window} cap={soft_cap} {'+'.join(segments)} {dtype}"
    print(json.dumps({"case": shape, "dtype": dtype, **named}), flush=True)


def parity():
    stand_in.interpret()
    # Small tiles: several per text, of unequal sides, so that every bound of the loops is exercised.
    gpu.TILES = {
        "forward": (gpu.Tile(32, 16, 4, 1),) * 2,
        "query_gradient": (gpu.Tile(16, 32, 4, 1),) * 2,
        "key_value_gradient": (gpu.Tile(16, 32, 4, 1),) * 2,
    }
    for length, heads, groups in ((1, 2, 1), (63, 1, 1), (127, 2, 1)):
        compare(length, heads, groups, 0, 0.0)
    for window, soft_cap in ((13, 2.0), (40, 0.0), (41, 2.0), (1, 0.0)):
        compare(40, 4, 1, window, soft_cap)
    compare(70, 4, 2, 0, 1.5, segments=("one", "empty"))
    compare(70, 2, 1, 33, 0.0, segments=("unordered", "one"))
    compare(40, 4, 2, 24, 2.0, dtype="bfloat16")
    compare(40, 2, 2, 0, 0.0, dtype="bfloat16")


def resources():
    calls = stand_in.record()
    cases = (
        ("gemma 3 1b local", 4, 1, {"window": 512, "soft_cap": 0.0}, "bfloat16"),
        ("gemma 3 1b global", 4, 1, {"window": 0, "soft_cap": 0.0}, "bfloat16"),
        ("gemma 2 2b", 8, 4, {"window": 4096, "soft_cap": 50.0}, "bfloat16"),
        ("gemma 3 1b local", 4, 1, {"window": 512, "soft_cap": 0.0}, "float32"),
    )
    for name, heads, groups, settings, dtype in cases:
        segment = jnp.zeros((2, 2048), jnp.int32)
        attention = functools.partial(gpu.attention, segment_BT=segment, scale=0.0625, **settings)

        def gradient(*operands, attention=attention):
            return jax.vjp(attention, *operands)[1](operands[0])

        calls.clear()
        jax.eval_shape(gradient, *(jax.ShapeDtypeStruct((2, 2048, n, 256), dtype) for n in (heads, groups, groups)))
        for call in calls:
            print(json.dumps({"case": name, "dtype": dtype, **stand_in.compile_for_hopper(call)}), flush=True)


if __name__ == "__main__":
    {"parity": parity, "resources": resources}[sys.argv[1]]()
