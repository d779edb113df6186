"""Hidden states to sampled tokens: checks, then the implementation."""

from typing import Literal

import jax
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Key

from thinkfirst.kernels import placement
from thinkfirst.kernels.sample import noise, reference, tpu
from thinkfirst.kernels.token_logprob import reference as logprob_reference


def sample(
    hidden_BD: Float[Array, "B D"],
    table_VD: Float[Array, "V D"],
    key_B: Key[Array, "B"],
    *,
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    soft_cap: float = 0.0,
    axis_name: str | None = None,
    backend: Literal["auto", "reference", "tpu", "tpu_interpret"] = "auto",
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """(token, its log-prob in nats under the distribution it was drawn from, truncation floor) of each row.

    "tpu" draws other tokens of the same distribution than "reference": its noise is that of noise.py.  It alone takes
    a share of the vocabulary, inside `shard_map` with the `axis_name` that the shares are spread over.
    """
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if backend == "auto":
        backend = "tpu" if placement.kernels_run() and not unsupported(hidden_BD, table_VD, key_B) else "reference"
    if backend == "reference":
        if axis_name:
            raise ValueError(f"the reference needs the whole vocabulary, not a share of it over {axis_name!r}")
        logit_BV = logprob_reference.logits(hidden_BD, table_VD, soft_cap)
        return reference.sample(logit_BV, key_B, **settings)
    if backend == "tpu":
        problem = unsupported(hidden_BD, table_VD, key_B) or _elsewhere()
        if problem:
            raise ValueError(f"backend='tpu': {problem}")
    interpret = pltpu.InterpretParams() if backend == "tpu_interpret" else False
    return tpu.sample(
        hidden_BD, table_VD, key_B, **settings, soft_cap=soft_cap, axis_name=axis_name, interpret=interpret
    )


def _elsewhere() -> str:
    return "" if placement.platform() == "tpu" else f"runs on {placement.platform()}"


def unsupported(hidden_BD: Float[Array, "B D"], table_VD: Float[Array, "V D"], key_B: Key[Array, "B"]) -> str:
    """Why the TPU kernel cannot take these operands; empty if it can."""
    if hidden_BD.shape[1] % tpu.LANES:
        return f"the width {hidden_BD.shape[1]} is no multiple of {tpu.LANES}"
    if jax.random.key_data(key_B).shape[1] != noise.KEY_WORDS:
        return f"keys are {key_B.dtype}, not threefry2x32"
    return ""
