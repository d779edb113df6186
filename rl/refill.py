"""Which groups of samples to learn from, and how many more prompts to draw: dynamic sampling, planned.

A group whose rewards are all equal has advantage 0 and teaches nothing.  DAPO (arXiv 2503.14476, section 3.2) drops
such groups and samples others until the batch is full.  Here that is a pure function of all that was drawn for this
step so far; the caller draws, and asks again, until nothing more is to be drawn.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int

from thinkfirst.rl import advantage


@dataclasses.dataclass(frozen=True)
class Plan:
    """`keep`: the groups to learn from, oldest first.  `draw`: prompts to sample next; 0 ends the drawing.

    `short` tells that the token budget ended it, with fewer groups than wanted.
    """

    keep: tuple[int, ...]
    draw: int
    short: bool


def plan(
    reward_PG: Float[np.ndarray, "P G"],
    num_tokens_P: Int[np.ndarray, "P"],
    *,
    wanted: int,
    token_budget: int,
    most: int,
    known_PG: Bool[np.ndarray, "P G"] | None = None,
) -> Plan:
    """The plan after P groups of this step, of which group p cost `num_tokens_P[p]` sampled tokens.

    So many are drawn as are expected to fill the gap, at the share of useful groups seen so far (one useful and one
    useless group added to what was seen, so that neither a bad nor a lucky start decides): at most `most`, the width of
    a rollout, and at most what the rest of `token_budget` pays for at the mean cost so far.
    """
    if min(wanted, most) < 1:
        raise ValueError(f"wanted={wanted} and most={most} must be at least 1")
    seen = len(reward_PG)
    if seen == 0:
        return Plan(keep=(), draw=min(wanted, most), short=False)
    useful = np.flatnonzero(~advantage.has_no_signal(reward_PG, known_PG))
    keep = tuple(int(index) for index in useful[:wanted])
    missing = wanted - len(keep)
    if missing == 0:
        return Plan(keep=keep, draw=0, short=False)
    expected_share = (len(keep) + 1) / (seen + 2)
    spent = int(num_tokens_P.sum())
    affordable = (token_budget - spent) * seen // max(spent, 1)
    draw = max(0, min(math.ceil(missing / expected_share), most, affordable))
    return Plan(keep=keep, draw=draw, short=draw == 0)
