"""Log-probs of a large vocabulary on this machine, forward and gradient, against logits that are written out."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from thinkfirst.kernels.token_logprob import api
from thinkfirst.launch.benchmarks import timing

TOKENS, VOCABULARY, WIDTH = 256, 262_144, 128
GAP = 1e-4  # nats, or parts of the largest gradient; float32
SLOWER, SMALLER = 1.1, 20.0  # at most so much slower than the logits, at least so much smaller

Operands = tuple[Array, Array, Array, Array]


def operands() -> Operands:
    """Hidden states, table, tokens and what each log-prob counts for."""
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(rng.standard_normal((1, TOKENS, WIDTH)), jnp.float32),
        jnp.asarray(rng.standard_normal((VOCABULARY, WIDTH)) / WIDTH**0.5, jnp.float32),
        jnp.asarray(rng.integers(0, VOCABULARY, (1, TOKENS)), jnp.int32),
        jnp.asarray(rng.standard_normal((1, TOKENS)), jnp.float32),
    )


def ours(
    hidden_BTD: Float[Array, "B T D"], table_VD: Float[Array, "V D"], token_BT: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """(log-prob, entropy), as the learner asks for them."""
    floor_BT = jnp.full(token_BT.shape, -jnp.inf)
    return api.token_logprob(hidden_BTD, table_VD, token_BT, floor_BT, temperature=jnp.float32(1.0))


def plain(
    hidden_BTD: Float[Array, "B T D"], table_VD: Float[Array, "V D"], token_BT: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The same by way of [B, T, V] logits."""
    logit_BTV = jnp.einsum("BTD,VD->BTV", hidden_BTD, table_VD)
    lse_BT = jax.nn.logsumexp(logit_BTV, axis=-1)
    logp_BT = jnp.take_along_axis(logit_BTV, token_BT[:, :, None], axis=-1)[:, :, 0] - lse_BT
    expected_BT = (jnp.exp(logit_BTV - lse_BT[:, :, None]) * logit_BTV).sum(axis=-1)
    return logp_BT, lse_BT - expected_BT


def compiled(function: Callable, given: Operands) -> Any:
    """(weighted sum of log-probs, (log-prob, entropy)) and its gradient to the hidden states, as one program."""

    def loss(hidden_BTD: Array, table_VD: Array, token_BT: Array, weight_BT: Array) -> tuple[Array, tuple]:
        found = function(hidden_BTD, table_VD, token_BT)
        return (found[0] * weight_BT).sum(), found

    return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*given).compile()


def gaps(found: Any, expected: Any) -> dict[str, float]:
    """How far two answers of such programs lie apart."""
    (_, (logp, entropy)), gradient = jax.device_get(found)
    (_, (plain_logp, plain_entropy)), plain_gradient = jax.device_get(expected)
    return {
        "log-prob": float(np.abs(logp - plain_logp).max()),
        "entropy": float(np.abs(entropy - plain_entropy).max()),
        "gradient, relative": float(np.abs(gradient - plain_gradient).max() / np.abs(plain_gradient).max()),
    }


def _finished(program: Callable, given: Operands) -> Any:
    return jax.block_until_ready(program(*given))


def run(repeats: int) -> dict[str, Any]:
    """Gaps, median seconds and temporary bytes of both sides; ValueError, with nothing timed, if they disagree."""
    given = operands()
    programs = {"ours": compiled(ours, given), "logits written out": compiled(plain, given)}
    found = gaps(*(program(*given) for program in programs.values()))
    timing.require_small(found, GAP)
    sides: dict[str, Callable[[], Any]] = {
        name: functools.partial(_finished, program, given) for name, program in programs.items()
    }
    medians = timing.alternate(sides, repeats)
    temp = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    slower = medians["ours"] / medians["logits written out"]
    smaller = temp["logits written out"] / max(temp["ours"], 1)
    print(f"token_logprob: {TOKENS} tokens of {VOCABULARY:,} at width {WIDTH}, forward and gradient")
    for name, gap in found.items():
        print(f"  checked  {name}: {gap:.1e}")
    for name, seconds in medians.items():
        print(f"  {seconds:8.3f} s  {temp[name] / 2**20:10.1f} MiB  {name}")
    print(f"  time {slower:.2f} of written-out logits (at most {SLOWER}): {'met' if slower <= SLOWER else 'MISSED'}")
    print(f"  memory 1/{smaller:.0f} (at most 1/{SMALLER:.0f}): {'met' if smaller >= SMALLER else 'MISSED'}")
    found_sizes = {"seconds": medians, "temp_bytes": temp, "ratio": {"logits written out": 1 / slower}}
    return {"case": "token_logprob", "checks": found, **found_sizes, "slower": slower, "smaller": smaller}
