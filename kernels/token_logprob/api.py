"""Log-probabilities of given tokens straight from hidden states: no [B, T, V] array."""

import math

from jaxtyping import Array, Float, Int

from thinkfirst.kernels.token_logprob import reference

CHUNK_ELEMENTS = 2**25  # float32 logits alive at a time: 128 MiB


def token_logprob(
    hidden_BTD: Float[Array, "B T D"],
    table_VD: Float[Array, "V D"],
    token_BT: Int[Array, "B T"],
    floor_BT: Float[Array, "B T"],
    *,
    temperature: Float[Array, ""],
    soft_cap: float = 0.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """(log-prob, entropy), in nats, of `token_BT` under the distribution that was sampled from.

    `hidden_BTD[b, t]` is the state that predicts `token_BT[b, t]`.  `floor_BT` is `Rollout.floor_BT`.
    """
    batch, length, width = hidden_BTD.shape
    chunk = max(1, min(batch * length, CHUNK_ELEMENTS // table_VD.shape[0]))
    chunk = math.ceil(batch * length / math.ceil(batch * length / chunk))
    logp, entropy = reference.token_logprob(
        hidden_BTD.reshape(-1, width),
        table_VD,
        token_BT.reshape(-1),
        floor_BT.reshape(-1),
        temperature=temperature,
        soft_cap=soft_cap,
        chunk=chunk,
    )
    return logp.reshape(batch, length), entropy.reshape(batch, length)
