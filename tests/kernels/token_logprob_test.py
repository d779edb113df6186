import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.kernels.token_logprob import api, chunked, reference, streamed


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


@pytest.mark.parametrize(("backend", "there", "not_there"), [("reference", 32, 64), ("auto", None, 32)])
def test_no_array_of_all_logits_exists(backend, there, not_there):
    """Forward and backward of 64 tokens over 2**20 words: 32 x 2**20 logits at a time at most, or none of that size."""
    hidden, table = jax.ShapeDtypeStruct((1, 64, 8), jnp.float32), jax.ShapeDtypeStruct((2**20, 8), jnp.float32)

    def total(hidden, table):
        token, floor = jnp.zeros((1, 64), int), jnp.full((1, 64), -jnp.inf)
        return api.token_logprob(hidden, table, token, floor, temperature=jnp.float32(1.0), backend=backend)[0].sum()

    text = jax.jit(jax.grad(total)).lower(hidden, table).as_text()
    assert there is None or f"{there}x{2**20}x" in text
    assert f"{not_there}x{2**20}x" not in text


def test_auto_on_a_cpu_is_the_reference_for_a_small_vocabulary_and_the_sweep_for_a_large_one():
    def jaxpr(vocab, backend):
        hidden, table, token = case(vocab=vocab)
        floor = jnp.full(token.shape, -jnp.inf)
        run = functools.partial(api.token_logprob, temperature=jnp.float32(1.0), backend=backend)
        return str(jax.make_jaxpr(run)(hidden, table, token, floor))

    assert jaxpr(1000, "auto") == jaxpr(1000, "reference")
    assert jaxpr(api.STREAMED_WORDS, "auto") != jaxpr(api.STREAMED_WORDS, "reference")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("soft_cap", "floor"), [(0.0, -np.inf), (5.0, -9.0)])
def test_sweep_on_a_cpu_is_the_reference(monkeypatch, dtype, soft_cap, floor):
    """Values and the gradients of log-prob and entropy, to states and to table; tokens and words in uneven blocks."""
    monkeypatch.setattr(chunked, "TOKENS", 4)
    monkeypatch.setattr(chunked, "WORDS", 13)
    monkeypatch.setattr(streamed, "TOKEN_CHUNK", 3)
    monkeypatch.setattr(streamed, "VOCAB_CHUNK", 10)
    hidden, table, token = case(dtype)
    floor_BT = jnp.full(token.shape, floor).at[0].set(-jnp.inf)

    def total(hidden, table, backend):
        logp, entropy = api.token_logprob(
            hidden, table, token, floor_BT, temperature=jnp.float32(0.7), soft_cap=soft_cap, backend=backend
        )
        return (jnp.sin(logp) + entropy).sum(), (logp, entropy)

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True), static_argnums=2)
    (_, found), gradients = run(hidden, table, "chunked")
    wide = hidden.astype(jnp.float32), table.astype(jnp.float32)
    (_, expected), exact = run(*wide, "reference")
    for mine, theirs in zip(found, expected, strict=True):
        tolerance.assert_close(mine, theirs, slack=2)  # logits of 10 and more
    for mine, theirs in zip(gradients, exact, strict=True):
        tolerance.assert_close(mine, theirs, slack=2)  # sums of 33 products of such


def test_a_large_vocabulary_in_bfloat16_is_not_widened():
    """Temporary memory of forward and backward on a CPU: under a twentieth of the logits'."""
    hidden, table = jax.ShapeDtypeStruct((1, 64, 64), jnp.bfloat16), jax.ShapeDtypeStruct((2**18, 64), jnp.bfloat16)

    def total(hidden, table):
        token, floor = jnp.zeros((1, 64), int), jnp.full((1, 64), -jnp.inf)
        return api.token_logprob(hidden, table, token, floor, temperature=jnp.float32(1.0))[0].sum()

    memory = jax.jit(jax.grad(total)).lower(hidden, table).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 64 * 2**18 * 4 / 20
