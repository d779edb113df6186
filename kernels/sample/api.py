"""Hidden states to sampled tokens."""

from jaxtyping import Array, Float, Int, Key

from thinkfirst.kernels.sample import reference
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
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """(token, its log-prob in nats under the distribution it was drawn from, truncation floor) of each row."""
    logit_BV = logprob_reference.logits(hidden_BD, table_VD, soft_cap)
    return reference.sample(logit_BV, key_B, temperature=temperature, top_k=top_k, top_p=top_p)
