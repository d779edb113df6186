"""Advantages from rewards: arrays in, arrays out.

    A_pg = (r_pg - mean_g r_pg) / (std_g r_pg + epsilon)        std with ddof 1

GRPO (Shao et al., arXiv 2402.03300); ddof 1 as in TRL, verl and Tunix; epsilon 1e-6 as in verl and Tunix (TRL: 1e-4).
"""

import numpy as np
from jaxtyping import Bool, Float


def group_relative(reward_PG: Float[np.ndarray, "P G"], *, epsilon: float = 1e-6) -> Float[np.ndarray, "P G"]:
    """Rewards centred and scaled within each prompt, float32; exactly 0 where all rewards of a group are equal."""
    if reward_PG.shape[1] < 2:
        raise ValueError(f"a group of {reward_PG.shape[1]} has nothing to be compared with: G must be at least 2")
    if not np.isfinite(reward_PG).all():
        raise ValueError(f"rewards must be finite: row {np.argwhere(~np.isfinite(reward_PG))[0].tolist()} is not")
    reward = reward_PG.astype(np.float64)
    centred = reward - reward.mean(axis=1, keepdims=True)
    scaled = centred / (reward.std(axis=1, ddof=1, keepdims=True) + epsilon)
    return np.where(has_no_signal(reward_PG)[:, None], 0.0, scaled).astype(np.float32)


def has_no_signal(reward_PG: Float[np.ndarray, "P G"]) -> Bool[np.ndarray, "P"]:
    """True for the groups whose rewards are all equal."""
    return reward_PG.max(axis=1) == reward_PG.min(axis=1)
