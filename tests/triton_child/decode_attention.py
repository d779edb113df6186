"""Prints JSON about the Triton kernel of decoding: `parity` errors against the reference, or `resources` on sm_90."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

import stand_in
from thinkfirst.kernels.decode_attention import gpu, reference


def compare(slots, heads, groups, position, *, window=0, soft_cap=0.0, dtype="float32", width=16):
    rng = np.random.default_rng(slots)
    batch = len(position)
    shapes = ((batch, heads, width), (batch, slots, groups, width), (batch, slots, groups, width))
    operands = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    settings = {"scale": 0.3, "window": window, "soft_cap": soft_cap}
    position_B = jnp.asarray(position, jnp.int32)
    found = gpu.attention(*operands, position_B, **settings)
    exact = reference.attention(*(x.astype(jnp.float32) for x in operands), position_B, **settings)
    error = float(jnp.abs(found.astype(jnp.float32) - exact).max() / jnp.abs(exact).max())
    case = f"S={slots} {heads}:{groups} positions {position} window={window} cap={soft_cap} {dtype}"
    print(json.dumps({"case": case, "dtype": dtype, "context": error}), flush=True)


def parity():
    stand_in.interpret()
    gpu.SLOTS, gpu.PROGRAMS = (16, 16), 9  # several tiles in a share, and shares that stay empty
    compare(1, 1, 1, [0, 5])
    compare(63, 4, 1, [0, 15, 16, 62, 63, 200])
    compare(63, 4, 2, [0, 40, 62, 100], window=63, soft_cap=2.0)
    compare(127, 2, 2, [3, 50, 126, 127, 160], window=20)
    compare(127, 2, 1, [90], window=500, soft_cap=1.0)
    compare(63, 4, 2, [5, 40, 62, 100], dtype="bfloat16")


def resources():
    calls = stand_in.record()
    cases = (
        ("gemma 3 1b local", 512, 4, 1, {"window": 512, "soft_cap": 0.0}, "bfloat16"),
        ("gemma 3 1b global", 2048, 4, 1, {"window": 0, "soft_cap": 0.0}, "bfloat16"),
        ("gemma 2 2b", 2048, 8, 4, {"window": 4096, "soft_cap": 50.0}, "bfloat16"),
        ("gemma 3 1b local", 512, 4, 1, {"window": 512, "soft_cap": 0.0}, "float32"),
    )
    for name, slots, heads, groups, settings, dtype in cases:
        shapes = ((64, heads, 256), (64, slots, groups, 256), (64, slots, groups, 256))
        operands = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        calls.clear()
        attention = functools.partial(gpu.attention, position_B=jnp.zeros(64, jnp.int32), scale=0.0625, **settings)
        jax.eval_shape(attention, *operands)
        for call in calls:
            print(json.dumps({"case": name, "dtype": dtype, **stand_in.compile_for_hopper(call)}), flush=True)


if __name__ == "__main__":
    {"parity": parity, "resources": resources}[sys.argv[1]]()
