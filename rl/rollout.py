"""The rollout engine: prompts in, sampled completions and their log-probs out.

The work is done by one program for each bucket of sizes (rl/scheduler.py).  What the program is compiled for: padded
prompt length, room for new tokens, lanes, powers of two of prompts and rows, and whether tokens may be dropped.  All
else is data: how many prompts and samples there are, limits, sampler settings, stop ids, keys.

Randomness is fold_in(root, step, prompt id, sample, position): a sample comes out the same whatever its neighbours, its
lane, its place in the batch, the mesh and the number of hosts are.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Key

from thinkfirst.core import mesh as mesh_lib
from thinkfirst.core import sharding
from thinkfirst.models import gemma, kv_cache, lora
from thinkfirst.rl import batch, rollout_program, scheduler, stopping
from thinkfirst.rl import spread as spread_lib

LANES = 64  # per data shard, unless the caller asks for more or fewer
STOP_IDS = 8  # a multiple of so many: the number of them is no shape
FOREVER = 2**30  # turns
PAUSE_TURNS = 64  # between two pauses
TIMED_RUNS = 3


@dataclasses.dataclass(frozen=True)
class Progress:
    """The rollout so far, on the host; which rows have ended."""

    rollout: batch.Rollout
    ended_B: np.ndarray


class Engine:
    """Samples completions of prompts from a policy (parameters, adapter)."""

    def __init__(
        self,
        model: gemma.Model,
        mesh: Mesh,
        *,
        room: int,
        stop_ids: tuple[int, ...],
        lanes: int = LANES,
        int8: bool = False,
    ) -> None:
        """`room` is the most new tokens a call may ask for; each data shard decodes `lanes` rows side by side.

        `int8` keeps keys and values as 8-bit integers: half the memory, and log-probs that are not quite the learner's.
        """
        if beyond := [stop for stop in stop_ids if not 0 <= stop < model.config.vocab_size]:
            raise ValueError(f"stop id {beyond[0]} is outside the vocabulary of {model.config.vocab_size}")
        if lanes < 1 or room < 1:
            raise ValueError(f"an engine needs at least one lane and room for one token: {lanes=} {room=}")
        self.room, self.lanes, self.int8 = room, lanes, int8
        self.metrics: dict[str, float] = {}
        self._mesh, self._shards = mesh, mesh_lib.num_row_shards(mesh)
        self._stop_ids = np.full(-(-max(1, len(stop_ids)) // STOP_IDS) * STOP_IDS, -1, np.int32)
        self._stop_ids[: len(stop_ids)] = stop_ids
        self._programs = rollout_program.Programs(model, mesh)
        self._caches: tuple[Any, scheduler.Caches] | None = None
        self._calls: dict[scheduler.Shape, int] = {}
        self._seconds: dict[scheduler.Shape, dict[str, float]] = {}

    def sample(
        self,
        params: gemma.Params,
        adapter: lora.Adapter | None,
        prompts: batch.Prompts,
        sampling: batch.Sampling,
        key: Key[Array, ""],
        *,
        group: int = 1,
        pause: Callable[[], None] | None = None,
    ) -> batch.Rollout:
        """`group` completions of each prompt, on the host; row p * group + g is sample g of prompt p.

        `key` is fold_in(root, step).  What the call took is in `metrics` afterwards.  `pause` is called every few turns
        and may raise: the rollout is then left.
        """
        if pause is None:
            *_, last = self.stream(params, adapter, prompts, sampling, key, group=group)
            return last.rollout
        for last in self.stream(params, adapter, prompts, sampling, key, group=group, turns=PAUSE_TURNS):  # noqa: B007
            pause()
        return last.rollout

    def stream(
        self,
        params: gemma.Params,
        adapter: lora.Adapter | None,
        prompts: batch.Prompts,
        sampling: batch.Sampling,
        key: Key[Array, ""],
        *,
        group: int = 1,
        turns: int = FOREVER,
        cut: stopping.Cut | None = None,
    ) -> Iterator[Progress]:
        """How far all rows are after every so many turns, until all have ended.

        `cut` is asked about every row that has new tokens; a row that it ends counts as stopped.
        """
        begun = time.perf_counter()
        num_prompts = len(prompts.length_P)
        limit_B = self._limits(sampling, num_prompts * group)
        if not num_prompts:
            yield Progress(_no_rows(self.room), np.zeros(0, bool))
            return
        spread = spread_lib.Spread.of(num_prompts, group, self._shards)
        shape = self.bucket(num_prompts, group, prompts.tokens_PT.shape[1], truncated=sampling.truncated)
        queue = sharding.spread(spread.queue(prompts, limit_B, shape), self._mesh)
        call = sharding.everywhere(self._call(sampling, key, turns), self._mesh)
        state = self._programs.begin(shape)(self._held(shape))
        cuts = stopping.Cuts(cut or (lambda tokens: None), len(limit_B), self.room)
        waited = 0.0
        while True:
            ended = sharding.spread(spread.padded(cuts.ended_B, shape), self._mesh)
            state = self._programs.advance(shape)(state, (params, adapter), queue, ended, call)
            start = time.perf_counter()
            host = _fetched((state.rollout, state.lanes.row_E, state.counts))
            waited += time.perf_counter() - start
            rollout, ended_B = spread.gathered(host, shape)
            rollout = cuts.apply(rollout) if cut else rollout
            ended_B |= cuts.ended_B
            if ended_B.all():
                break
            yield Progress(rollout, ended_B)
        self._keep(shape, state.caches, sound=bool(np.isfinite(rollout.logp_BT).all()))
        spent = time.perf_counter() - begun
        self.metrics = {
            **self._measured(rollout, host[2], prompts, shape),
            "rollout/tokens_per_second": float(rollout.length_B.sum()) / spent,
            "rollout/time/host": 1.0 - waited / spent,
            **self._shares(shape, (params, adapter), call, host[2], share=waited / spent),
        }
        yield Progress(rollout, ended_B)

    def bucket(self, num_prompts: int, group: int, width: int, *, truncated: bool) -> scheduler.Shape:
        """What a call with so many prompts, padded to `width`, is compiled for."""
        most, rooms = -(-num_prompts // self._shards), kv_cache.Rooms(width, self.room, self.int8)
        return scheduler.shape_of(most, most * group, lanes=self.lanes, rooms=rooms, truncated=truncated)

    @property
    def compiles(self) -> int:
        """How often a program has been traced and compiled."""
        return self._programs.compiles

    def release(self) -> None:
        """Gives the memory of the caches back; the next call allocates them anew."""
        self._caches = None

    def _call(self, sampling: batch.Sampling, key: Key[Array, ""], turns: int) -> scheduler.Call:
        limits = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        return scheduler.Call(limits, self._stop_ids, key, np.int32(turns))

    def _limits(self, sampling: batch.Sampling, num_rows: int) -> np.ndarray:
        """The limit of new tokens of every row."""
        asked_B = np.broadcast_to(np.asarray(sampling.max_new_tokens), num_rows)
        if num_rows and asked_B.max() > self.room:
            raise ValueError(f"{asked_B.max()} new tokens asked of an engine with room for {self.room}")
        return asked_B

    def _held(self, shape: scheduler.Shape) -> scheduler.Caches:
        """The caches of the last call if they fit, else new ones."""
        held, self._caches = self._caches, None
        if held is not None and held[0] == shape.of_caches:
            return held[1]
        del held
        return self._programs.empty(shape)()

    def _keep(self, shape: scheduler.Shape, caches: scheduler.Caches, *, sound: bool) -> None:
        """Keeps the caches for the next call, but not those that may hold a NaN: masked, it would still spread."""
        self._caches = (shape.of_caches, caches) if sound else None

    def _shares(
        self,
        shape: scheduler.Shape,
        policy: rollout_program.Policy,
        call: Any,
        counts: scheduler.Counts,
        *,
        share: float,
    ) -> dict[str, float]:
        """How the device's `share` of a call's time divides: its steps timed by themselves, times how often they ran.

        They are timed once for a bucket, in its second call; the first one compiles, and knows nothing.
        """
        self._calls[shape] = self._calls.get(shape, 0) + 1
        if self._calls[shape] == 2 and self._caches:
            self._seconds[shape], self._caches = _timed(self._programs.parts(shape), self._caches, policy, call)
        if shape not in self._seconds:
            return {}
        times = {"prefill": counts.prefills.max(), "decode": counts.turns.max(), "sample": counts.turns.max()}
        spent = {name: float(times[name]) * seconds for name, seconds in self._seconds[shape].items()}
        return {f"rollout/time/{name}": share * one / sum(spent.values()) for name, one in spent.items()}

    def _measured(
        self, rollout: batch.Rollout, counts: scheduler.Counts, prompts: batch.Prompts, shape: scheduler.Shape
    ) -> dict[str, float]:
        """What the call did, over all shards."""
        prefilled = int(counts.prefills.sum()) * shape.prefilled * shape.rooms.prompt
        cached = jax.tree.leaves(self._caches[1] if self._caches else ())
        return {
            "rollout/occupancy": float(counts.busy.sum()) / (float(counts.turns.sum()) * shape.lanes),
            "rollout/turns": float(counts.turns.max()),
            "rollout/prefills": float(counts.prefills.sum()),
            "rollout/prompt_padding": 1.0 - float(np.sum(prompts.length_P)) / prefilled,
            "rollout/compiles": float(self.compiles),
            "rollout/cache_bytes": float(sum(leaf.nbytes for leaf in cached)),
            "rollout/ended_by_stop": float(rollout.stopped_B.mean()),
            "rollout/ended_by_length": 1.0 - float(rollout.stopped_B.mean()),
        }


def _timed(parts: dict[str, Any], held: Any, policy: rollout_program.Policy, call: Any) -> tuple[dict[str, float], Any]:
    """(seconds of each part, the caches they ran on): the best of a few runs after one that compiles."""
    shape, caches = held
    seconds = {}
    for name, part in parts.items():
        runs = []
        for _ in range(TIMED_RUNS + 1):
            start = time.perf_counter()
            caches, _ = jax.block_until_ready(part(caches, policy, call))
            runs.append(time.perf_counter() - start)
        seconds[name] = min(runs[1:])
    return seconds, (shape, caches)


def _no_rows(room: int) -> batch.Rollout:
    none = np.zeros((0, room), np.float32)
    return batch.Rollout(none.astype(np.int32), none, none, np.zeros(0, np.int32), np.zeros(0, bool))


def _fetched(tree: Any) -> Any:
    """A tree of arrays on this host, whichever hosts have the parts."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
