"""Hidden states to sampled tokens: checks, then the implementation."""

from typing import Literal

import jax
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Key

from thinkfirst.kernels import placement
from thinkfirst.kernels.sample import noise, reference, tpu
from thinkfirst.kernels.token_logprob import reference as logprob_reference


@jax.named_scope("sample")
def sample(
    hidden_BD: Float[Array, "B D"],
    table_VD: Float[Array, "V D"],
    key_B: Key[Array, "B"],
    *,
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    min_p: Float[Array, ""],
    truncated: bool = True,
    soft_cap: float = 0.0,
    axis_name: str | None = None,
    backend: Literal["auto", "reference", "tpu", "tpu_interpret"] = "auto",
) -> reference.Drawn:
    """(token, its log-prob in nats under the distribution it was drawn from, truncation floor) of each row.

    top_k 0, top_p 1 and min_p 0 keep every token; a caller who knows that all three are so says `truncated=False`, and
    nothing is compiled for them: on a TPU there is then no [B, V].  min-p drops what is less than min_p times as likely
    as the likeliest.  Inside `shard_map` with `axis_name`, `table_VD` is this device's share of the vocabulary.
    "tpu" draws other tokens of the same distribution than "reference", and both the same ones however it is shared.
    A row whose logits hold a NaN, or are all -inf, or reach +inf, gets token 0, log-prob NaN and the floor -inf.
    """
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    if backend == "auto":
        backend = "tpu" if placement.kernels_run() and not unsupported(hidden_BD, table_VD, key_B) else "reference"
    if backend == "reference":
        logit_BV = logprob_reference.logits(hidden_BD, table_VD, soft_cap)
        if axis_name:
            logit_BV = jax.lax.all_gather(logit_BV, axis_name, axis=1, tiled=True)
        return reference.sample(logit_BV, key_B, **settings, truncated=truncated)
    if backend == "tpu":
        problem = unsupported(hidden_BD, table_VD, key_B) or _elsewhere()
        if problem:
            raise ValueError(f"backend='tpu': {problem}")
    interpret = pltpu.InterpretParams() if backend == "tpu_interpret" else False
    return tpu.sample(
        hidden_BD,
        table_VD,
        key_B,
        **settings,
        truncated=truncated,
        soft_cap=soft_cap,
        axis_name=axis_name,
        interpret=interpret,
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
