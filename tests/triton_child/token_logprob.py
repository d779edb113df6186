"""Prints JSON about the Triton kernels of log-probs: `parity` errors against the reference, `resources` on sm_90,
or whether a `workspace` of all tokens is made."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

import stand_in
from thinkfirst.kernels.token_logprob import api, gpu


def compare(length, vocab, width, *, floor=None, dtype="float32", shards=1, **settings):
    """With `shards` the vocabulary is cut over the devices of an axis, for which vmap stands in."""
    rng = np.random.default_rng(length)
    hidden = np.asarray(rng.normal(size=(1, length, width)), jnp.dtype(dtype))
    table = np.asarray(rng.normal(size=(vocab, width)) * 0.5, jnp.dtype(dtype))
    token = rng.integers(0, vocab, (1, length)).astype(np.int32)
    floors = np.where(np.arange(length) % 3 == 0, -np.inf, -np.inf if floor is None else floor)[None].astype(np.float32)
    upstream = tuple(rng.normal(size=(1, length)).astype(np.float32) for _ in range(2))
    case = f"{length} x {vocab} x {width} {settings} floor={floor} {dtype} shards={shards}"
    settings["temperature"] = np.float32(settings.get("temperature", 1.0))

    def run(gradients, hidden, table, **settings):
        def values(*operands):
            return api.token_logprob(*operands, *(hidden, table)[gradients:], token, floors, **settings)

        found, pullback = jax.vjp(values, *(hidden, table)[:gradients])
        return [*found, *pullback(upstream)]

    plainly = functools.partial(run, 2, **settings, backend="reference")
    exact = jax.device_get(jax.jit(plainly)(hidden.astype(np.float32), table.astype(np.float32)))
    settings |= {"truncated": floor is not None, "backend": "gpu"}
    if shards == 1:
        found = jax.jit(functools.partial(run, 2, **settings))(hidden, table)
    else:
        of_shard = functools.partial(run, 1, axis_name="tensor", **settings)
        found = jax.jit(jax.vmap(of_shard, (None, 0), axis_name="tensor"))(hidden, table.reshape(shards, -1, width))
    errors = [float(np.abs(np.asarray(a, np.float32) - b).max()) for a, b in zip(found, exact, strict=False)]
    relative = [error / float(np.abs(x).max()) for error, x in zip(errors[2:], exact[2:], strict=False)]
    row = dict(zip(("logp", "entropy", "gradient", "table_gradient"), errors[:2] + relative, strict=False))
    print(json.dumps({"case": case, "dtype": dtype, **row}), flush=True)


def parity():
    stand_in.interpret()
    # Small tiles: several per side, the last ones partly empty; a share of the vocabulary may hold no tile at all.
    gpu.TILES = dict.fromkeys(gpu.TILES, (gpu.Tile(16, 32, 16, 4, 1),) * 2)
    gpu.CHUNK, gpu.PROGRAMS = 24, 12
    compare(1, 33, 8)
    compare(63, 190, 24)
    compare(40, 160, 32, temperature=0.7, soft_cap=5.0)
    compare(40, 130, 16, temperature=1.3, floor=-4.0)
    compare(127, 70, 16, soft_cap=3.0, floor=-5.0)
    compare(40, 130, 64, temperature=0.9, soft_cap=30.0, dtype="bfloat16")
    compare(30, 120, 16, soft_cap=3.0, floor=-5.0, shards=3)


def resources():
    calls = stand_in.record()
    cases = (
        ("gemma 3 1b", 262144, 1152, 0.0, False, "bfloat16"),
        ("gemma 3 1b, floor", 262144, 1152, 0.0, True, "bfloat16"),
        ("gemma 2 2b", 256128, 2304, 30.0, False, "bfloat16"),
        ("gemma 3 1b", 262144, 1152, 0.0, False, "float32"),
    )
    for name, vocab, width, soft_cap, truncated, dtype in cases:
        hidden, table = (jax.ShapeDtypeStruct((size, width), dtype) for size in (8192, vocab))

        def total(hidden, table, soft_cap=soft_cap, truncated=truncated):
            settings = gpu.Settings(soft_cap=soft_cap, truncated=truncated)
            rest = jnp.zeros(8192, jnp.int32), jnp.zeros(8192)
            return gpu.token_logprob(settings, hidden, table, *rest, temperature=jnp.float32(1.0))[0].sum()

        calls.clear()
        jax.eval_shape(jax.grad(total), hidden, table)
        for call in calls[truncated:]:  # a floor adds a sweep without one
            print(json.dumps({"case": name, "dtype": dtype, **stand_in.compile_for_hopper(call)}), flush=True)


def workspace():
    """Which arrays of logits forward and backward of 8,192 tokens make."""
    stand_in.record()

    def total(hidden, table):
        settings = gpu.Settings(soft_cap=0.0, truncated=False)
        rest = jnp.zeros(8192, jnp.int32), jnp.zeros(8192)
        return gpu.token_logprob(settings, hidden, table, *rest, temperature=jnp.float32(1.0))[0].sum()

    operands = [jax.ShapeDtypeStruct((size, 64), jnp.bfloat16) for size in (8192, 262144)]
    text = jax.jit(jax.grad(total)).lower(*operands).as_text()
    print(json.dumps({"whole": "8192x262144x" in text, "chunk": "tensor<1024x262144xbf16>" in text}))


if __name__ == "__main__":
    {"parity": parity, "resources": resources, "workspace": workspace}[sys.argv[1]]()
