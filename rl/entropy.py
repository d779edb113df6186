"""Which tokens of a batch were the uncertain ones.

    floor = the (1 - share) quantile of the entropies of the batch's tokens        keep a token where H >= floor

Learning from the top fifth of the tokens by entropy: arXiv 2506.01939.  The floor is one number for the whole optimiser
batch: it takes the entropies of every token of the batch, all micro-batches and all devices, hence a forward pass over
all of them before the first gradient.  Taken from a micro-batch it would depend on how the batch is cut.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def top_share_floor(entropy_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"], *, share: float) -> Float[Array, ""]:
    """The entropy that the given share of the tokens reaches: a quantile, linear between neighbours; no tokens: -inf.

    Inside `jit` over sharded rows it is that of all of them.
    """
    count = mask_BT.sum()
    sorted_T = jnp.sort(jnp.where(mask_BT, entropy_BT, jnp.inf).reshape(-1))
    place = (1.0 - share) * (count - 1).astype(entropy_BT.dtype)
    below = jnp.maximum(jnp.floor(place), 0.0)
    left = sorted_T[below.astype(jnp.int32)]
    right = sorted_T[jnp.minimum(below.astype(jnp.int32) + 1, jnp.maximum(count - 1, 0))]
    return jnp.where(count > 0, left + (place - below) * (right - left), -jnp.inf)
