"""Log-probabilities of given tokens straight from hidden states: no [B, T, V] array."""

import functools
import math
from typing import Literal

import jax
from jaxtyping import Array, Float, Int

from thinkfirst.kernels import placement
from thinkfirst.kernels.token_logprob import chunked, gpu, reference, streamed, tpu

CHUNK_ELEMENTS = 2**25  # float32 logits that the reference has alive at a time: 128 MiB
STREAMED_WORDS = 2**14  # from this vocabulary on, AUTO sweeps on a CPU too
Backend = Literal["auto", "reference", "chunked", "tpu", "tpu_interpret", "gpu"]


@jax.named_scope("token_logprob")
def token_logprob(
    hidden_BTD: Float[Array, "B T D"],
    table_VD: Float[Array, "V D"],
    token_BT: Int[Array, "B T"],
    floor_BT: Float[Array, "B T"],
    *,
    temperature: Float[Array, ""],
    soft_cap: float = 0.0,
    truncated: bool = True,
    entropy_gradient: bool = False,
    axis_name: str | None = None,
    backend: Backend = "auto",
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """(log-prob, entropy), in nats, of `token_BT` under the distribution that was sampled from.

    `hidden_BTD[b, t]` is the state that predicts `token_BT[b, t]`.  `floor_BT` is `Rollout.floor_BT`; a caller who
    knows that it is -inf everywhere says `truncated=False`, and the sweep for floors is not compiled.
    `entropy_gradient` says that the entropy will be differentiated: its gradient then comes from the same sweep (a
    third product), where it would cost another sweep.  With `axis_name`, inside `shard_map`, `table_VD` is this
    device's part of the vocabulary, in order; all else, results too, is the same on every device of that axis.
    """
    batch, length, width = hidden_BTD.shape
    hidden_TD = hidden_BTD.reshape(-1, width)
    token_T, floor_T = token_BT.reshape(-1), floor_BT.reshape(-1)
    if placement.takes_triton(backend, supported=gpu.supports(hidden_TD)):
        settings = gpu.Settings(soft_cap=soft_cap, truncated=truncated, axis_name=axis_name)
        logp_T, entropy_T = gpu.token_logprob(settings, hidden_TD, table_VD, token_T, floor_T, temperature=temperature)
        return logp_T.reshape(batch, length), entropy_T.reshape(batch, length)
    backend = _resolve(backend, table_VD, sharded=axis_name is not None)
    if backend == "reference":
        logp_T, entropy_T = reference.token_logprob(
            hidden_TD,
            table_VD,
            token_T,
            floor_T,
            temperature=temperature,
            soft_cap=soft_cap,
            chunk=_chunk(batch * length, table_VD.shape[0]),
        )
    else:
        sweep: streamed.Sweep = chunked.sweep
        if backend != "chunked":
            interpret = tpu.INTERPRETED if backend == "tpu_interpret" else False
            sweep = functools.partial(tpu.sweep, interpret=interpret)
        plan = streamed.Plan(
            sweep=sweep,
            soft_cap=soft_cap,
            truncated=truncated,
            entropy_gradient=entropy_gradient,
            axis_name=axis_name,
        )
        operands = streamed.Operands(hidden_TD, table_VD, token_T, floor_T, temperature)
        logp_T, entropy_T = streamed.token_logprob(plan, operands)
    return logp_T.reshape(batch, length), entropy_T.reshape(batch, length)


def _resolve(backend: Backend, table_VD: Float[Array, "V D"], *, sharded: bool) -> Backend:
    """AUTO takes the kernel on a TPU, else the sweep for a large vocabulary; a backend asked for by name must run."""
    num_words, width = table_VD.shape
    reason = tpu.unsupported(width, num_words, table_VD.dtype.itemsize)
    if backend == "auto":
        if placement.kernels_run() and not reason:
            return "tpu"
        return "chunked" if sharded or num_words >= STREAMED_WORDS else "reference"
    if backend == "reference" and sharded:
        raise ValueError("the reference of token_logprob wants the whole table: it takes no axis_name")
    if backend == "tpu" and placement.platform() != "tpu":
        raise ValueError(f"token_logprob: backend 'tpu' needs a TPU, this is {placement.platform()!r}")
    if backend in ("tpu", "tpu_interpret") and reason:
        raise ValueError(f"token_logprob: backend {backend!r} cannot run: {reason}")
    return backend


def _chunk(num_tokens: int, num_words: int) -> int:
    """Tokens that the reference takes at a time: as many as fit, in equal chunks."""
    chunk = max(1, min(num_tokens, CHUNK_ELEMENTS // num_words))
    return math.ceil(num_tokens / math.ceil(num_tokens / chunk))
