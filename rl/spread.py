"""Which prompts go to which data shard, and how what the shards have becomes rows in the caller's order again."""

import dataclasses
from typing import Any

import jax
import numpy as np

from thinkfirst.rl import batch, scheduler


@dataclasses.dataclass(frozen=True)
class Spread:
    """Which prompts go to which shard: one after the other, the first shards one more where they do not divide."""

    counts: np.ndarray
    group: int

    @classmethod
    def of(cls, num_prompts: int, group: int, shards: int) -> "Spread":
        each, more = divmod(num_prompts, shards)
        return cls(np.array([each + (shard < more) for shard in range(shards)]), group)

    def queue(self, prompts: batch.Prompts, limit_B: np.ndarray, shape: scheduler.Shape) -> scheduler.Queue:
        """The queues of all shards side by side."""
        place = self._places(1, shape.prompts)
        taken = jax.tree.map(lambda x: np.asarray(x)[np.maximum(place, 0)], prompts)
        group = np.full(len(self.counts), self.group, np.int32)
        return scheduler.Queue(taken, self.padded(limit_B, shape).astype(np.int32), self.counts.astype(np.int32), group)

    def padded(self, value_B: np.ndarray, shape: scheduler.Shape) -> np.ndarray:
        """A value for each row where the shards have it; zero where there is no row."""
        place = self._places(self.group, shape.rows)
        return np.where(place < 0, np.zeros((), value_B.dtype), value_B[np.maximum(place, 0)])

    def gathered(self, host: Any, shape: scheduler.Shape) -> tuple[batch.Rollout, np.ndarray]:
        """(rollout, whether each row has ended) in the caller's order."""
        rollout, row_E, counts = host
        real = np.flatnonzero(self._places(self.group, shape.rows) >= 0)
        shard, row = np.divmod(real, shape.rows)
        running = np.zeros((len(self.counts), shape.rows + 1), bool)
        np.put_along_axis(running, row_E.reshape(len(self.counts), -1), values=True, axis=1)
        ended_B = (row < counts.started[shard]) & ~running[shard, row]
        return jax.tree.map(lambda x: x[real], rollout), ended_B

    def _places(self, each: int, size: int) -> np.ndarray:
        """For `size` places on every shard, which of the caller's is there, `each` for a prompt; -1: none."""
        first = np.concatenate([[0], np.cumsum(self.counts)[:-1]])[:, None] * each
        column = np.arange(size)[None, :]
        return np.where(column < self.counts[:, None] * each, first + column, -1).reshape(-1)
