"""Ending a row by its text: the host looks at it every few turns, the engine only knows tokens."""

from collections.abc import Callable, Sequence

import numpy as np

from thinkfirst.rl import batch

Cut = Callable[[list[int]], int | None]  # of a row's tokens: how many to keep, if that many end it


class Cuts:
    """How many tokens are left of the rows that `cut` has ended; asked again only about rows with new tokens."""

    def __init__(self, cut: Cut, num_rows: int, room: int) -> None:
        self._cut, self._room = cut, room
        self._seen_B = np.zeros(num_rows, np.int64)
        self._kept_B = np.full(num_rows, room + 1)

    @property
    def ended_B(self) -> np.ndarray:
        """The rows that were ended."""
        return self._kept_B <= self._room

    def apply(self, rollout: batch.Rollout) -> batch.Rollout:
        """The rollout with nothing behind the end of a row, which counts as stopped there."""
        for row in np.flatnonzero((rollout.length_B > self._seen_B) & ~self.ended_B):
            kept = self._cut(rollout.tokens_BT[row, : rollout.length_B[row]].tolist())
            if kept is not None:
                self._kept_B[row] = kept
        self._seen_B = np.asarray(rollout.length_B)
        beyond_BT = np.arange(self._room)[None, :] >= self._kept_B[:, None]
        return batch.Rollout(
            tokens_BT=np.where(beyond_BT, 0, rollout.tokens_BT),
            logp_BT=np.where(beyond_BT, np.float32(0), rollout.logp_BT),
            floor_BT=np.where(beyond_BT, np.float32(-np.inf), rollout.floor_BT),
            length_B=np.minimum(rollout.length_B, self._kept_B).astype(np.int32),
            stopped_B=rollout.stopped_B | self.ended_B,
        )


def at_strings(strings: Sequence[str], decode: Callable[[list[int]], str]) -> Cut:
    """Ends a row with the token that completes any of `strings`, wherever in the token it does."""

    def cut(tokens: list[int]) -> int | None:
        if not any(string in decode(tokens) for string in strings):
            return None
        fewest, enough = 0, len(tokens)  # the text of `fewest` tokens holds none of them, that of `enough` does
        while enough - fewest > 1:
            middle = (fewest + enough) // 2
            if any(string in decode(tokens[:middle]) for string in strings):
                enough = middle
            else:
                fewest = middle
        return enough

    return cut
