"""Advantages from rewards: arrays in, arrays out.

    group_relative     A_pg = (r_pg - mean_g r_pg) / (std_g r_pg + epsilon)        GRPO, arXiv 2402.03300
    centred            A_pg =  r_pg - mean_g r_pg                                  Dr. GRPO, arXiv 2503.20783
    leave_one_out      A_pg =  r_pg - mean over the others of the group            RLOO, arXiv 2402.14740
    batch_scaled       A_pg = (r_pg - mean_g r_pg) / (std of all rewards + epsilon)        arXiv 2508.08221

Standard deviations have ddof 1 as in TRL, verl and Tunix; epsilon is 1e-6 as in verl and Tunix (TRL: 1e-4).

`known_PG` is False for a sample that no reward could judge.  Its advantage is 0 and it has no part in any mean or
deviation; a group with fewer than two known rewards has nothing to compare.  A reward that is not finite is an error,
never a mark for an unknown one.
"""

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Known = Bool[np.ndarray, "P G"] | None
Name = Literal["grpo", "grpo_ddof0", "dr_grpo", "rloo", "batch_std"]


def group_relative(
    reward_PG: Float[np.ndarray, "P G"], known_PG: Known = None, *, ddof: int = 1, epsilon: float = 1e-6
) -> Float[np.ndarray, "P G"]:
    """Rewards centred and scaled within each prompt, float32; exactly 0 where all rewards of a group are equal."""
    return _per_group(lambda r: (r - r.mean()) / (r.std(ddof=ddof) + epsilon), reward_PG, known_PG)


def centred(reward_PG: Float[np.ndarray, "P G"], known_PG: Known = None) -> Float[np.ndarray, "P G"]:
    """Rewards centred within each prompt and not scaled: a hard or an easy prompt weighs no more than another."""
    return _per_group(lambda r: r - r.mean(), reward_PG, known_PG)


def leave_one_out(reward_PG: Float[np.ndarray, "P G"], known_PG: Known = None) -> Float[np.ndarray, "P G"]:
    """Rewards less the mean of the others of their group: G / (G - 1) times the centred ones."""
    return _per_group(lambda r: r - (r.sum() - r) / (len(r) - 1), reward_PG, known_PG)


def batch_scaled(
    reward_PG: Float[np.ndarray, "P G"], known_PG: Known = None, *, epsilon: float = 1e-6
) -> Float[np.ndarray, "P G"]:
    """Rewards centred within each prompt and scaled by the deviation of all rewards of the batch."""
    every = reward_PG[_checked(reward_PG, known_PG)].astype(np.float64)
    scale = (every.std(ddof=1) if len(every) > 1 else 0.0) + epsilon
    return _per_group(lambda r: (r - r.mean()) / scale, reward_PG, known_PG)


ESTIMATORS: dict[Name, Callable[..., np.ndarray]] = {
    "grpo": group_relative,
    "grpo_ddof0": functools.partial(group_relative, ddof=0),
    "dr_grpo": centred,
    "rloo": leave_one_out,
    "batch_std": batch_scaled,
}


def has_no_signal(reward_PG: Float[np.ndarray, "P G"], known_PG: Known = None) -> Bool[np.ndarray, "P"]:
    """True for the groups whose known rewards are all equal, or fewer than two."""
    known = np.full(reward_PG.shape, fill_value=True) if known_PG is None else known_PG
    return np.where(known, reward_PG, -np.inf).max(axis=1) <= np.where(known, reward_PG, np.inf).min(axis=1)


def _per_group(
    rule: Callable[[np.ndarray], np.ndarray], reward_PG: Float[np.ndarray, "P G"], known_PG: Known
) -> Float[np.ndarray, "P G"]:
    """`rule` applied to the known rewards of each group that has a signal; 0 elsewhere."""
    known = _checked(reward_PG, known_PG)
    found = np.zeros(reward_PG.shape, np.float32)
    for group in np.flatnonzero(~has_no_signal(reward_PG, known_PG)):
        found[group, known[group]] = rule(reward_PG[group, known[group]].astype(np.float64))
    return found


def _checked(reward_PG: Float[np.ndarray, "P G"], known_PG: Known) -> Bool[np.ndarray, "P G"]:
    """Where rewards are known, all of them by default; ValueError for groups of one and for rewards not finite."""
    if reward_PG.shape[1] < 2:
        raise ValueError(f"a group of {reward_PG.shape[1]} has nothing to be compared with: G must be at least 2")
    known = np.full(reward_PG.shape, fill_value=True) if known_PG is None else known_PG
    wrong = known & ~np.isfinite(reward_PG)
    if wrong.any():
        raise ValueError(f"rewards must be finite: row {np.argwhere(wrong)[0].tolist()} is not")
    return known
