"""Log-prob, entropy and their gradient to the hidden states from sweeps over the table: logits exist a block at a time.

    z = cap(hidden . W) / temperature,   logp = z_y - lse,   lse = log sum_kept exp z,   entropy = lse - E[z]
    d logp / d hidden    = (c_y W_y - E[c W]) / temperature,      c = 1 - tanh^2 of the cap (1 without one)
    d entropy / d hidden = -E[(z - E[z]) c W] / temperature

A sweep is attention with hidden states as queries and the table as keys and values: with a running maximum, lse, E[z]
and E[c W] come out of one pass, z_y and W_y beside them, so forward and backward cost two products with the table, and
the backward pass is a multiply.  A floor is relative to the log-sum-exp over *all* words, so rows that have one cost a
sweep for it first.

`chunked.sweep` (plain JAX) and `tpu.sweep` (Pallas) sweep; here is what both share.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

TOKEN_CHUNK = 1024  # tokens whose own table rows are gathered at a time
VOCAB_CHUNK = 2048  # words whose gradient is computed at a time, when the table has one


class Swept(NamedTuple):
    """What a sweep over the kept words says of each token; the last two when asked for, else None."""

    lse_T: Float[Array, "T"]
    entropy_T: Float[Array, "T"]
    logit_T: Float[Array, "T"]  # z_y, kept or not; 0 where y is not a word of this table
    slope_TD: Float[Array, "T D"] | None  # (c_y W_y - E[c W]) / temperature, the first term when asked for
    tilt_TD: Float[Array, "T D"] | None  # E[(z - E[z]) c W] / temperature


class Operands(NamedTuple):
    """The arrays of a call; `temperature` and `floor_T` have no gradient."""

    hidden_TD: Float[Array, "T D"]
    table_VD: Float[Array, "V D"]
    token_T: Int[Array, "T"]
    floor_T: Float[Array, "T"]
    temperature: Float[Array, ""]


# sweep(hidden_TD, table_VD, token_T, least_T, *, temperature, soft_cap, moments, own): statistics over the words with
# z >= least_T, all of them if that is None.  `moments` 1 adds slope_TD, 2 also tilt_TD.  `own` says that the table has
# every token, whose rows are wanted in slope_TD.
Sweep = Callable[..., Swept]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is static in a call.  `truncated` False: every floor is known to be -inf."""

    sweep: Sweep
    soft_cap: float
    truncated: bool
    entropy_gradient: bool = False
    axis_name: str | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def token_logprob(plan: Plan, operands: Operands) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
    """(log-prob, entropy) of each token."""
    swept = _statistics(plan, operands, 0)
    return swept.logit_T - swept.lse_T, swept.entropy_T


def _forward(plan: Plan, primals: Any) -> Any:
    """Outputs and what the backward pass multiplies; nothing is gathered for an operand that has no tangent."""
    operands = jax.tree.map(lambda leaf: leaf.value, primals, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    if primals.temperature.perturbed:
        raise ValueError("token_logprob has no gradient with respect to the temperature")
    if primals.table_VD.perturbed and plan.axis_name is not None:
        raise ValueError(f"token_logprob has no gradient of a table that is sharded over {plan.axis_name!r}")
    moments = (2 if plan.entropy_gradient else 1) if primals.hidden_TD.perturbed else 0
    swept = _statistics(plan, operands, moments)
    kept = swept if primals.table_VD.perturbed else None
    return (swept.logit_T - swept.lse_T, swept.entropy_T), (operands, swept.slope_TD, swept.tilt_TD, kept)


def _backward(plan: Plan, residual: Any, cotangent: Any) -> tuple[Operands]:
    operands, slope_TD, tilt_TD, swept = residual
    logp_T, entropy_T = cotangent
    hidden_TD = table_VD = None
    if slope_TD is not None:
        gradient_TD = 0.0 if isinstance(logp_T, SymbolicZero) else logp_T[:, None] * slope_TD
        if not isinstance(entropy_T, SymbolicZero):
            if tilt_TD is None:
                tilt_TD = _tilt_if_used(plan, operands, entropy_T)
            gradient_TD = gradient_TD - entropy_T[:, None] * tilt_TD
        hidden_TD = jnp.broadcast_to(gradient_TD, operands.hidden_TD.shape).astype(operands.hidden_TD.dtype)
    if swept is not None:
        logp_T, entropy_T = (
            jnp.zeros(ct.shape, ct.dtype) if isinstance(ct, SymbolicZero) else ct for ct in (logp_T, entropy_T)
        )
        table_VD = _table_gradient(plan, operands, swept, logp_T, entropy_T)
    return (Operands(hidden_TD, table_VD, None, None, None),)  # type: ignore[arg-type]


token_logprob.defvjp(_forward, _backward, symbolic_zeros=True)


def capped(logit: jax.Array, soft_cap: float) -> tuple[jax.Array, jax.Array]:
    """The capped logit and its derivative."""
    if not soft_cap:
        return logit, jnp.ones_like(logit)
    tanh = jnp.tanh(logit / soft_cap)
    return soft_cap * tanh, 1 - tanh * tanh


def as_summed(steep: jax.Array, rounded: jax.Array, prob: jax.Array) -> jax.Array:
    """The factor c_y of a token's own row, off by what rounding did to this row in E[c W], where that matters.

    A word with more than half of the probability has weight 1 in the sum, so its factor there is c_y `rounded` to the
    dtype of the products.  The gradient of a sure token is the small difference between the two rows.
    """
    return steep + jnp.where(prob > 0.5, prob * (rounded - steep), 0.0)


def rounded(x_T: Float[Array, "T"], dtype: Any) -> Float[Array, "T"]:
    """Float32 numbers of the precision of `dtype`; XLA would take out a cast there and back."""
    precision = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x_T, precision.nexp, precision.nmant)


def _tilt_if_used(plan: Plan, operands: Operands, entropy_T: Float[Array, "T"]) -> Float[Array, "T D"]:
    """`Swept.tilt_TD`, swept for now; zeros where the cotangents are (they often are zeros that were written out)."""
    shape = operands.hidden_TD.shape
    return jax.lax.cond(
        jnp.any(entropy_T != 0),
        lambda: _statistics(plan, operands, 2).tilt_TD,
        lambda: jnp.zeros(shape, jnp.float32),
    )


def _statistics(plan: Plan, operands: Operands, moments: int) -> Swept:
    token_T = operands.token_T
    if plan.axis_name is not None:
        token_T = token_T - jax.lax.axis_index(plan.axis_name) * operands.table_VD.shape[0]

    def sweep(least_T: Float[Array, "T"] | None, moments: int) -> Swept:
        swept = plan.sweep(
            operands.hidden_TD,
            operands.table_VD,
            token_T,
            least_T,
            temperature=operands.temperature,
            soft_cap=plan.soft_cap,
            moments=moments,
            own=plan.axis_name is None,
        )
        return swept if plan.axis_name is None else _combine(plan, swept, operands, token_T)

    if not plan.truncated:
        return sweep(None, moments)
    return jax.lax.cond(
        jnp.any(operands.floor_T > -jnp.inf),
        lambda: sweep(operands.floor_T + sweep(None, 0).lse_T, moments),
        lambda: sweep(None, moments),
    )


def _combine(plan: Plan, swept: Swept, operands: Operands, token_T: Int[Array, "T"]) -> Swept:
    """Statistics over the whole vocabulary; `token_T` counts from this shard's first word."""
    peak_T = jax.lax.pmax(swept.lse_T, plan.axis_name)
    lse_T = peak_T + jnp.log(jax.lax.psum(jnp.exp(swept.lse_T - peak_T), plan.axis_name))
    weight_T = jnp.exp(swept.lse_T - lse_T)
    some_T = weight_T > 0  # a shard of which nothing is kept has lse -inf
    entropy_T = jnp.where(some_T, weight_T * (lse_T - swept.lse_T + swept.entropy_T), 0.0)
    entropy_T, logit_T = jax.lax.psum((entropy_T, swept.logit_T), plan.axis_name)
    slope_TD = tilt_TD = None
    if swept.slope_TD is not None:
        slope_TD = weight_T[:, None] * swept.slope_TD
    if swept.tilt_TD is not None:
        assert slope_TD is not None
        apart_T = jnp.where(some_T, (swept.lse_T - swept.entropy_T) - (lse_T - entropy_T), 0.0)
        tilt_TD = jax.lax.psum(weight_T[:, None] * swept.tilt_TD - apart_T[:, None] * slope_TD, plan.axis_name)
    if slope_TD is not None:
        steep_T = jnp.ones_like(logit_T)
        if plan.soft_cap:
            steep_T -= (logit_T * operands.temperature / plan.soft_cap) ** 2
            rounded_T = rounded(steep_T, operands.hidden_TD.dtype)
            steep_T = as_summed(steep_T, rounded_T, jnp.exp(logit_T - lse_T))
        slope_TD = _with_own_rows(slope_TD, operands.table_VD, token_T, steep_T / operands.temperature)
        slope_TD = jax.lax.psum(slope_TD, plan.axis_name)
    return Swept(lse_T, entropy_T, logit_T, slope_TD, tilt_TD)


def _with_own_rows(
    slope_TD: Float[Array, "T D"],
    table_VD: Float[Array, "V D"],
    token_T: Int[Array, "T"],
    factor_T: Float[Array, "T"],
) -> Float[Array, "T D"]:
    """`slope_TD` and the tokens' own rows of this table times `factor_T`, `TOKEN_CHUNK` of them at a time."""

    def add(begin: Any, size: int, slope_TD: Float[Array, "T D"]) -> Float[Array, "T D"]:
        word_T, weight_T, part_TD = (
            jax.lax.dynamic_slice_in_dim(x, begin, size) for x in (token_T, factor_T, slope_TD)
        )
        rows_TD = table_VD.at[word_T].get(mode="fill", fill_value=0, wrap_negative_indices=False)
        part_TD += weight_T[:, None] * rows_TD.astype(jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(slope_TD, part_TD, begin, 0)

    whole, rest = divmod(token_T.shape[0], TOKEN_CHUNK)
    if whole:
        slope_TD = jax.lax.fori_loop(
            0, whole, lambda i, slope_TD: add(i * TOKEN_CHUNK, TOKEN_CHUNK, slope_TD), slope_TD
        )
    return add(whole * TOKEN_CHUNK, rest, slope_TD) if rest else slope_TD


def _table_gradient(
    plan: Plan, operands: Operands, swept: Swept, logp_T: Float[Array, "T"], entropy_T: Float[Array, "T"]
) -> Float[Array, "V D"]:
    """Gradient of the table, some words at a time: the probabilities are computed once more."""
    hidden_TD, table_VD, token_T, floor_T, temperature = operands
    size = table_VD.shape[0]
    chunk = min(VOCAB_CHUNK, size)
    least_T = jnp.full_like(floor_T, -jnp.inf)
    if plan.truncated:
        plain = dataclasses.replace(plan, truncated=False)
        least_T = floor_T + _statistics(plain, operands, 0).lse_T

    def words(i: Any, gradient_VD: Float[Array, "V D"]) -> Float[Array, "V D"]:
        begin = jnp.minimum(i * chunk, size - chunk)  # the last chunk computes some words of the one before it again
        rows_VD = jax.lax.dynamic_slice_in_dim(table_VD, begin, chunk).astype(hidden_TD.dtype)
        product_TV = jnp.einsum("TD,VD->TV", hidden_TD, rows_VD, preferred_element_type=jnp.float32)
        logit_TV, slope_TV = capped(product_TV, plan.soft_cap)
        logit_TV = logit_TV / temperature
        full_logp_TV = logit_TV - swept.lse_T[:, None]
        prob_TV = jnp.where(logit_TV >= least_T[:, None], jnp.exp(full_logp_TV), 0.0)
        own_TV = (token_T[:, None] == begin + jnp.arange(chunk)).astype(jnp.float32)
        pull_TV = logp_T[:, None] * (own_TV - prob_TV)
        pull_TV -= entropy_T[:, None] * prob_TV * (full_logp_TV + swept.entropy_T[:, None])
        pull_TV = (pull_TV * slope_TV / temperature).astype(hidden_TD.dtype)
        rows_VD = jnp.einsum("TV,TD->VD", pull_TV, hidden_TD, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(gradient_VD, rows_VD.astype(gradient_VD.dtype), begin, 0)

    return jax.lax.fori_loop(0, -(-size // chunk), words, jnp.zeros_like(table_VD))
