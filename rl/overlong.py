"""What to do with completions that ran into the limit of new tokens.  Lengths are in tokens, stop token included.

Filtering: a cut-off completion was not judged for what it would have become, so it is not learnt from.
Soft punishment (DAPO, arXiv 2503.14476, equation 13), a term of the reward, L = `max_tokens`, C = `buffer`:

    0 up to L - C,     ((L - C) - length) / C up to L,     -1 beyond
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from thinkfirst.rl import batch


@dataclasses.dataclass(frozen=True)
class OverlongConfig:
    """`drop`: what ran into the limit is filtered.  `buffer` tokens before it the soft punishment begins; 0: none.

    The reward gets `penalty` times the soft punishment, which is -1 at the limit.
    """

    drop: bool = False
    buffer: int = 0
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.buffer < 0 or not 0 < self.penalty < float("inf"):
            raise ValueError(f"overlong: buffer={self.buffer} must be at least 0, penalty={self.penalty} above 0")


def filtered(samples: Sequence[batch.Sample], stopped_B: Bool[np.ndarray, "B"]) -> list[batch.Sample]:
    """Samples that did not stop have no completion tokens: neither policy, KL nor entropy term, no count.

    Their rewards have had their part in the baselines of their groups.  They still count as samples where a loss
    divides by samples, as in TRL (`mask_truncated_completions`).
    """
    return [
        sample
        if stopped
        else dataclasses.replace(sample, completion=sample.completion[:0], logp=sample.logp[:0], floor=sample.floor[:0])
        for sample, stopped in zip(samples, stopped_B, strict=True)
    ]


def soft_punishment(length_B: Int[np.ndarray, "B"], *, max_tokens: int, buffer: int) -> Float[np.ndarray, "B"]:
    """0 for short completions, falling linearly to -1 over the last `buffer` tokens before `max_tokens`."""
    if not 0 < buffer <= max_tokens:
        raise ValueError(f"buffer={buffer} must lie between 1 and max_tokens={max_tokens}")
    return np.clip((max_tokens - buffer - length_B) / buffer, -1.0, 0.0).astype(np.float32)
