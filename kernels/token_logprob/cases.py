"""What is compiled for a TPU to count cycles and bytes: a function and its operands' shapes, by case."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thinkfirst.kernels import blocks
from thinkfirst.kernels.token_logprob import streamed, tpu

Case = tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]


def _operands(length: int, size: int, width: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (
        jax.ShapeDtypeStruct((length, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((size, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((length,), jnp.int32),
        jax.ShapeDtypeStruct((length,), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )


def _plan(soft_cap: float, *, entropy_gradient: bool = False, truncated: bool = False) -> streamed.Plan:
    return streamed.Plan(sweep=tpu.sweep, soft_cap=soft_cap, truncated=truncated, entropy_gradient=entropy_gradient)


def forward(soft_cap: float, length: int, size: int, width: int) -> Case:
    """Log-prob and entropy."""
    plan = _plan(soft_cap)
    return lambda *arrays: streamed.token_logprob(plan, streamed.Operands(*arrays)), _operands(length, size, width)


def forward_gradient(soft_cap: float, length: int, size: int, width: int) -> Case:
    """Log-prob and entropy, and the gradient of the summed log-probs to the hidden states."""
    plan = _plan(soft_cap)

    def total(hidden_TD: jax.Array, *arrays: jax.Array) -> Any:
        logp_T, entropy_T = streamed.token_logprob(plan, streamed.Operands(hidden_TD, *arrays))
        return logp_T.sum(), (logp_T, entropy_T)

    return jax.value_and_grad(total, has_aux=True), _operands(length, size, width)


def forward_all_gradients(soft_cap: float, length: int, size: int, width: int) -> Case:
    """The same with the entropy's gradient and with floors: every part of the kernel."""
    plan = _plan(soft_cap, entropy_gradient=True, truncated=True)

    def total(hidden_TD: jax.Array, *arrays: jax.Array) -> Any:
        logp_T, entropy_T = streamed.token_logprob(plan, streamed.Operands(hidden_TD, *arrays))
        return (logp_T + entropy_T).sum()

    return jax.grad(total), _operands(length, size, width)


SLICE = 1024, 16384, 1152  # tokens, words, width of Gemma 3 1B
CASES: dict[str, Callable[[], Case]] = {
    "token_logprob_fwd_grad": lambda: forward_gradient(0.0, *SLICE),
    "token_logprob_fwd_grad_cap": lambda: forward_gradient(30.0, *SLICE),
    "token_logprob_fwd": lambda: forward(0.0, *SLICE),
    "token_logprob_fwd_cap": lambda: forward(30.0, *SLICE),
    "token_logprob_fwd_grad_memory": lambda: forward_gradient(0.0, 8192, 262144, 1152),
}

_CUTS = ((256, 1024, 256), (512, 1024, 128), (512, 1024, 512), (512, 2048, 256), (1024, 1024, 256))
_CHOICES = tuple({"block_T": tokens, "block_V": words, "sub_block": part} for tokens, words, part in _CUTS)
SEARCH = {name: blocks.Search("token_logprob", _CHOICES) for name in ("token_logprob_fwd_grad", "token_logprob_fwd")}
