"""Prints JSON about the Triton kernels of log-probs: `parity` errors against the reference, `resources` on sm_90,
or whether a `workspace` of all tokens is made."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

import stand_in
from thinkfirst.kernels.token_logprob import gpu, reference


def compare(length, vocab, width, *, temperature=1.0, soft_cap=0.0, floor=None, dtype="float32"):
    rng = np.random.default_rng(length)
    hidden = jnp.asarray(rng.normal(size=(length, width)), dtype)
    table = jnp.asarray(rng.normal(size=(vocab, width)) * 0.5, dtype)
    token = jnp.asarray(rng.integers(0, vocab, length), jnp.int32)
    floors = None if floor is None else jnp.where(jnp.arange(length) % 3 == 0, -jnp.inf, floor)
    upstream = tuple(jnp.asarray(rng.normal(size=length), jnp.float32) for _ in range(2))
    settings = {"temperature": jnp.float32(temperature), "soft_cap": soft_cap}

    def expected(hidden):
        plain = jnp.full(length, -jnp.inf) if floors is None else floors
        return reference.token_logprob(hidden, table.astype(jnp.float32), token, plain, chunk=length, **settings)

    def found(hidden):
        return gpu.token_logprob(hidden, table, token, floors, **settings)

    exact, pullback = jax.vjp(expected, hidden.astype(jnp.float32))
    (exact_gradient,) = pullback(upstream)
    values, pullback = jax.vjp(found, hidden)
    (gradient,) = pullback(upstream)
    errors = [float(jnp.abs(a - b).max()) for a, b in zip(values, exact, strict=True)]
    relative = float(jnp.abs(gradient.astype(jnp.float32) - exact_gradient).max() / jnp.abs(exact_gradient).max())
    case = f"{length} x {vocab} x {width} temperature={temperature} cap={soft_cap} floor={floor} {dtype}"
    row = {"logp": errors[0], "entropy": errors[1], "gradient": relative}
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
    compare(30, 130, 16, soft_cap=3.0, floor=-5.0)
    compare(40, 130, 64, temperature=0.9, soft_cap=30.0, dtype="bfloat16")


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
            token, floor = jnp.zeros(8192, jnp.int32), jnp.zeros(8192) if truncated else None
            temperature = jnp.float32(1.0)
            return gpu.token_logprob(hidden, table, token, floor, temperature=temperature, soft_cap=soft_cap)[0].sum()

        calls.clear()
        jax.eval_shape(jax.grad(total), hidden, table)
        for call in calls[truncated:]:  # a floor adds a sweep without one
            print(json.dumps({"case": name, "dtype": dtype, **stand_in.compile_for_hopper(call)}), flush=True)


def workspace():
    """Which arrays of logits forward and backward of 8,192 tokens make."""
    stand_in.record()

    def total(hidden, table):
        token, temperature = jnp.zeros(8192, jnp.int32), jnp.float32(1.0)
        return gpu.token_logprob(hidden, table, token, None, temperature=temperature, soft_cap=0.0)[0].sum()

    operands = [jax.ShapeDtypeStruct((size, 64), jnp.bfloat16) for size in (8192, 262144)]
    text = jax.jit(jax.grad(total)).lower(*operands).as_text()
    print(json.dumps({"whole": "8192x262144x" in text, "chunk": "tensor<1024x262144xbf16>" in text}))


if __name__ == "__main__":
    {"parity": parity, "resources": resources, "workspace": workspace}[sys.argv[1]]()
