import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.kernels.token_logprob import api, reference


def case(dtype="float32", size=(2, 5, 8), vocab=33):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=size), dtype)
    table = jnp.asarray(rng.normal(size=(vocab, size[-1])), dtype)
    token = jnp.asarray(rng.integers(0, vocab, size[:2]))
    return hidden, table, token


def naive(hidden, table, token, floor, *, temperature, soft_cap):
    logit = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
    logit = (soft_cap * np.tanh(logit / soft_cap) if soft_cap else logit) / temperature
    full = logit - np.log(np.exp(logit).sum(-1, keepdims=True))
    kept = full >= np.asarray(floor)[..., None]
    lse = np.log((np.exp(logit) * kept).sum(-1))
    logp = logit - lse[..., None]
    entropy = -(np.exp(logp) * logp * kept).sum(-1)
    return np.take_along_axis(logit, np.asarray(token)[..., None], -1)[..., 0] - lse, entropy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("temperature", "soft_cap", "floor"), [(1.0, 0.0, -np.inf), (0.7, 5.0, -np.inf), (1.3, 0.0, -3.5)]
)
def test_equals_the_whole_softmax(dtype, temperature, soft_cap, floor):
    hidden, table, token = case(dtype)
    floor_BT = jnp.full(token.shape, floor)
    found = api.token_logprob(hidden, table, token, floor_BT, temperature=jnp.float32(temperature), soft_cap=soft_cap)
    for mine, exact in zip(
        found, naive(hidden, table, token, floor_BT, temperature=temperature, soft_cap=soft_cap), strict=True
    ):
        tolerance.assert_close(mine, exact)


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_chunks_change_neither_value_nor_gradient(chunk):
    hidden, table, token = case()
    flat, ids, floor = hidden.reshape(-1, 8), token.reshape(-1), jnp.full((10,), -jnp.inf)

    def total(hidden, chunk):
        return reference.token_logprob(
            hidden, table, ids, floor, temperature=jnp.float32(1.0), soft_cap=0.0, chunk=chunk
        )[0].sum()

    tolerance.assert_close(total(flat, chunk), total(flat, 10))
    tolerance.assert_close(jax.grad(total)(flat, chunk), jax.grad(total)(flat, 10))


def test_gradient_is_that_of_the_plain_formula():
    hidden, table, token = case()

    def plain(hidden):
        return jnp.take_along_axis(jax.nn.log_softmax(hidden @ table.T), token[..., None], axis=-1).sum()

    def ours(hidden):
        floor = jnp.full(token.shape, -jnp.inf)
        return api.token_logprob(hidden, table, token, floor, temperature=jnp.float32(1.0))[0].sum()

    tolerance.assert_close(jax.grad(ours)(hidden), jax.grad(plain)(hidden))


def test_no_array_of_all_logits_exists():
    """Forward and backward of 64 tokens over 2**20 words, in chunks of 32: no buffer holds 64 x 2**20 numbers."""
    hidden, table = jax.ShapeDtypeStruct((1, 64, 8), jnp.float32), jax.ShapeDtypeStruct((2**20, 8), jnp.float32)

    def total(hidden, table):
        token, floor = jnp.zeros((1, 64), int), jnp.full((1, 64), -jnp.inf)
        return api.token_logprob(hidden, table, token, floor, temperature=jnp.float32(1.0))[0].sum()

    text = jax.jit(jax.grad(total)).lower(hidden, table).as_text()
    assert f"32x{2**20}x" in text
    assert f"64x{2**20}x" not in text
