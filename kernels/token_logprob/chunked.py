"""The sweep in plain JAX: a block of tokens times a block of words at a time, small enough for the cache of a CPU.

What is carried over the vocabulary, for each token: the maximum so far, the sum of exp(z - maximum), the sum of that
times z - maximum, and the sums of table rows that were asked for.  float32.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from thinkfirst.kernels.token_logprob import streamed

TOKENS = 128
WORDS = 2048
NOTHING = -1e30  # logit of a dropped word; finite, so that 0 times it is 0

Carry = tuple[Float[Array, "T"], Float[Array, "T"], Float[Array, "T"], tuple[Float[Array, "T D"], ...]]


def sweep(
    hidden_TD: Float[Array, "T D"],
    table_VD: Float[Array, "V D"],
    token_T: Int[Array, "T"],
    least_T: Float[Array, "T"] | None,
    *,
    temperature: Float[Array, ""],
    soft_cap: float,
    moments: int,
    own: bool,
) -> streamed.Swept:
    """`streamed.Sweep`, `TOKENS` x `WORDS` logits at a time."""
    body = functools.partial(
        _sweep_tokens, table_VD=table_VD, temperature=temperature, soft_cap=soft_cap, moments=moments, own=own
    )
    length = hidden_TD.shape[0]
    if length <= TOKENS:
        return body(hidden_TD, token_T, least_T)
    padding = -length % TOKENS
    chunks = (hidden_TD, token_T) if least_T is None else (hidden_TD, token_T, least_T)
    chunks = jax.tree.map(
        lambda x: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, TOKENS, *x.shape[1:]), chunks
    )
    swept = jax.lax.map(lambda chunk: body(*chunk, *(() if least_T is not None else (None,))), chunks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:length], swept)


def _sweep_tokens(
    hidden_TD: Float[Array, "T D"],
    token_T: Int[Array, "T"],
    least_T: Float[Array, "T"] | None,
    *,
    table_VD: Float[Array, "V D"],
    temperature: Float[Array, ""],
    soft_cap: float,
    moments: int,
    own: bool,
) -> streamed.Swept:
    length, width = hidden_TD.shape
    size = table_VD.shape[0]
    words = min(WORDS, size)
    absorb = functools.partial(
        _absorb,
        hidden_TD=hidden_TD,
        table_VD=table_VD,
        least_T=least_T,
        temperature=temperature,
        soft_cap=soft_cap,
        words=words,
    )
    zero_T = jnp.zeros((length,), jnp.float32)
    carry = zero_T + NOTHING / 2, zero_T, zero_T, (jnp.zeros((length, width), jnp.float32),) * moments
    peak_T, total_T, lean_T, sums = jax.lax.fori_loop(0, -(-size // words), absorb, carry)
    inverse_T = jnp.where(total_T > 0, 1 / total_T, 0.0)
    mean_T = lean_T * inverse_T  # of the distance from the maximum
    entropy_T = jnp.where(total_T > 0, jnp.log(total_T) - mean_T, 0.0)
    rows_TD = table_VD.at[token_T].get(mode="fill", fill_value=0, wrap_negative_indices=False).astype(hidden_TD.dtype)
    logit_T, steep_T = streamed.capped(
        jnp.einsum("TD,TD->T", hidden_TD, rows_TD, preferred_element_type=jnp.float32), soft_cap
    )
    row_TD, tilt_TD = (*(sum_TD * (inverse_T / temperature)[:, None] for sum_TD in sums), None, None)[:2]
    slope_TD = None if row_TD is None else -row_TD
    if tilt_TD is not None:
        tilt_TD -= mean_T[:, None] * row_TD
    lse_T = peak_T + jnp.log(total_T)
    if slope_TD is not None and own:
        if soft_cap:
            prob_T = jnp.exp(logit_T / temperature - lse_T)
            steep_T = streamed.as_summed(steep_T, streamed.rounded(steep_T, hidden_TD.dtype), prob_T)
        slope_TD += (steep_T / temperature)[:, None] * rows_TD.astype(jnp.float32)
    return streamed.Swept(lse_T, entropy_T, logit_T / temperature, slope_TD, tilt_TD)


def _absorb(
    i: Int[Array, ""],
    carry: Carry,
    *,
    hidden_TD: Float[Array, "T D"],
    table_VD: Float[Array, "V D"],
    least_T: Float[Array, "T"] | None,
    temperature: Float[Array, ""],
    soft_cap: float,
    words: int,
) -> Carry:
    """Take in `words` words; the last block starts early enough to be whole, and drops what the one before it had."""
    peak_T, total_T, lean_T, sums = carry
    size = table_VD.shape[0]
    begin = jnp.minimum(i * words, size - words)
    # Tied to the index: XLA on CPU would widen a whole bfloat16 table to float32, once, before the loop.
    begin, table_VD = jax.lax.optimization_barrier((begin, table_VD))
    rows_VD = jax.lax.dynamic_slice_in_dim(table_VD, begin, words).astype(hidden_TD.dtype)
    logit_TV = jnp.einsum("TD,VD->TV", hidden_TD, rows_VD, preferred_element_type=jnp.float32)
    logit_TV, slope_TV = streamed.capped(logit_TV, soft_cap)
    logit_TV = logit_TV / temperature
    if least_T is not None:
        logit_TV = jnp.where(logit_TV >= least_T[:, None], logit_TV, NOTHING)
    if size % words:
        logit_TV = jnp.where(begin + jnp.arange(words) >= i * words, logit_TV, NOTHING)

    new_peak_T = jnp.maximum(peak_T, logit_TV.max(axis=1))
    rise_T = peak_T - new_peak_T
    fade_T = jnp.exp(rise_T)
    below_TV = logit_TV - new_peak_T[:, None]
    weight_TV = jnp.exp(below_TV)
    lean_TV = weight_TV * below_TV
    new_total_T = fade_T * total_T + weight_TV.sum(axis=1)
    new_lean_T = fade_T * (lean_T + rise_T * total_T) + lean_TV.sum(axis=1)
    new_sums = []
    for order, sum_TD in enumerate(sums):
        factor_TV = ((weight_TV, lean_TV)[order] * slope_TV).astype(hidden_TD.dtype)
        pulled_TD = jnp.einsum("TV,VD->TD", factor_TV, rows_VD, preferred_element_type=jnp.float32)
        risen_TD = sum_TD + rise_T[:, None] * sums[0] if order else sum_TD
        new_sums.append(fade_T[:, None] * risen_TD + pulled_TD)
    return new_peak_T, new_total_T, new_lean_T, tuple(new_sums)
