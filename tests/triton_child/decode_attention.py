"""Prints JSON about the Triton kernel of decoding: `parity` errors against the reference, or `resources` on sm_90."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

import stand_in
from thinkfirst.kernels.decode_attention import api, gpu

LAYERS = 2


def random(rng, *shape, dtype):
    return np.asarray(rng.normal(size=shape), jnp.dtype(dtype))


def widened(tree):
    return jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == jnp.bfloat16 else x, tree)


def report(case, dtype, found, exact):
    """`found` and `exact`: context, then stacks of keys and values, which must be the same to the bit."""
    (context, *stacks), (exact_context, *exact_stacks) = widened(jax.device_get((found, exact)))
    error = float(np.abs(context - exact_context).max() / np.abs(exact_context).max())
    same = all((a == b).all() for a, b in zip(stacks, exact_stacks, strict=True))
    row = {"case": f"{case} {dtype}", "dtype": dtype, "context": error, "same_cache": bool(same)}
    print(json.dumps(row), flush=True)


def compare(slots, heads, groups, position, *, window=0, soft_cap=0.0, dtype="float32", width=16):
    """One layer of a stack, which is written first."""
    rng = np.random.default_rng(slots)
    batch = len(position)
    query = random(rng, batch, heads, width, dtype=dtype)
    new = tuple(random(rng, batch, groups, width, dtype=dtype) for _ in range(2))
    ring = tuple(random(rng, LAYERS, batch, slots, groups, width, dtype=dtype) for _ in range(2))
    position_B = np.asarray(position, np.int32)
    settings = {"scale": 0.3, "window": window, "soft_cap": soft_cap}
    append = functools.partial(api.append_attention, **settings)
    rest = np.int32(1), position_B
    found, cache = jax.jit(functools.partial(append, backend="gpu"))(query, new, ring, *rest)
    exact, kept = jax.jit(functools.partial(append, backend="reference"))(*widened((query, new, ring)), *rest)
    case = f"S={slots} {heads}:{groups} positions {position} window={window} cap={soft_cap}"
    report(case, dtype, (found, *cache), (exact, *kept))


def compare_grouped(tokens, slots, heads, groups, rows, *, window=0, soft_cap=0.0, dtype="float32", width=16):
    """`rows`: (prompt, position) of each; prompt p is p + 1 tokens shorter than there is room."""
    rng = np.random.default_rng(tokens)
    batch, num_prompts = len(rows), 1 + max(row[0] for row in rows)
    query = random(rng, batch, heads, width, dtype=dtype)
    new = tuple(random(rng, batch, groups, width, dtype=dtype) for _ in range(2))
    own = tuple(random(rng, LAYERS, batch, slots, groups, width, dtype=dtype) for _ in range(2))
    prompt = tuple(random(rng, LAYERS, num_prompts, tokens, groups, width, dtype=dtype) for _ in range(2))
    group, position = (np.asarray(column, np.int32) for column in zip(*rows, strict=True))
    length = (tokens - 1 - np.arange(num_prompts)).astype(np.int32)
    settings = {"scale": 0.3, "window": window, "soft_cap": soft_cap}

    @functools.partial(jax.jit, static_argnums=0)
    def decode(backend, arrays, whole):
        query, new, own, prompt = arrays
        layer, position, length, group = whole
        shared = {"prompt": prompt, "length_P": length, "group_B": group, "backend": backend}
        return api.grouped(query, new, own, layer, position, **shared, **settings)

    arrays, whole = (query, new, own, prompt), (np.int32(1), position, length, group)
    (found, cache), (exact, written) = decode("gpu", arrays, whole), decode("reference", widened(arrays), whole)
    case = f"T={tokens} S={slots} {heads}:{groups} rows {rows} window={window} cap={soft_cap}"
    report(case, dtype, (found, *cache), (exact, *written))


def parity():
    stand_in.interpret()
    gpu.SLOTS, gpu.PROGRAMS = (16, 16), 9  # several tiles in a share, and shares that stay empty
    compare(1, 1, 1, [0, 5])
    compare(63, 4, 1, [0, 15, 16, 62, 63, 200])
    compare(63, 4, 2, [0, 40, 62, 100], window=63, soft_cap=2.0)
    compare(127, 2, 2, [3, 50, 126, 127, 160], window=20)
    compare(127, 2, 1, [90], window=500, soft_cap=1.0)
    compare(63, 4, 2, [5, 40, 62, 100], dtype="bfloat16")
    even, mixed = [(p, 7 * g) for p in range(2) for g in range(5)], [(2, 0), (0, 20), (2, 1), (2, 5), (0, 30), (2, -1)]
    compare_grouped(40, 33, 4, 1, even, soft_cap=2.0)
    compare_grouped(63, 40, 2, 2, mixed)
    compare_grouped(40, 40, 4, 2, mixed, window=25)
    compare_grouped(40, 40, 3, 1, mixed, dtype="bfloat16")
    idle()


def idle():
    """A row that looks at nothing gets zeros."""
    query, cache = jnp.ones((2, 2, 16)), jnp.ones((1, 2, 17, 1, 16))
    own = gpu._own((cache, cache), jnp.int32(0), jnp.array([-1, 3]))
    found = gpu._combined(query, [gpu._sums(query, own, gpu.Settings(1.0, 0, 0.0), together=1)])
    assert found[:, 0, 0].tolist() == [0.0, 1.0], found


def resources():
    calls = stand_in.record()
    cases = (
        ("gemma 3 1b local", 512, 4, 1, {"window": 512, "soft_cap": 0.0}, "bfloat16"),
        ("gemma 3 1b global", 2048, 4, 1, {"window": 0, "soft_cap": 0.0}, "bfloat16"),
        ("gemma 2 2b", 2048, 8, 4, {"window": 4096, "soft_cap": 50.0}, "bfloat16"),
        ("gemma 3 1b local", 512, 4, 1, {"window": 512, "soft_cap": 0.0}, "float32"),
    )
    for name, slots, heads, groups, settings, dtype in cases:
        shapes = ((64, heads, 256), *((64, groups, 256),) * 2, *((26, 64, slots, groups, 256),) * 2)
        shapes += ((26, 8, 512, groups, 256),) * 2
        row_B, layer, length_P = jnp.zeros(64, jnp.int32), jnp.int32(0), jnp.zeros(8, jnp.int32)

        def decode(query, k, v, *stacks, settings=settings, row_B=row_B, layer=layer, length_P=length_P):
            shared = {"prompt": stacks[2:], "length_P": length_P, "group_B": row_B}
            return gpu.grouped(query, (k, v), stacks[:2], layer, row_B, **shared, scale=0.0625, **settings)

        calls.clear()
        jax.eval_shape(decode, *(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
        for part, call in zip(("prompts", "own"), calls, strict=True):
            resources = stand_in.compile_for_hopper(call)
            print(json.dumps({"case": f"{name}, {part}", "dtype": dtype, **resources}), flush=True)


if __name__ == "__main__":
    {"parity": parity, "resources": resources}[sys.argv[1]]()
