"""The rollout engine's program: a shard's queue of rows through a few lanes, a token per lane and turn.

    while rows are waiting or under way:
        while a lane is idle and a row waits:   prefill the next prompts when theirs is due, start the row in the lane
        draw a token in every lane, write it down, end the rows that are done, decode

A prompt is prefilled once for all its samples, a few prompts at a time; what rows share of it stays resident until the
last of them has ended.  Row p * G + g of the queue is sample g of prompt p; rows start in order.  All this is data: a
program is compiled for the number of lanes, the padded prompt length and the room for new tokens.

It runs inside `shard_map` over the batch axes, so that every data shard has a loop of its own.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from thinkfirst.kernels import placement
from thinkfirst.models import gemma, kv_cache, lora
from thinkfirst.rl import batch

PREFILL_TOKENS = 8192  # the most that go through the model at once to fill caches


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a program is compiled for, per shard: prompts and rows of the queue, and room to work in.

    `prefilled` prompts go through the model at once, `resident` ones are kept; `truncated` tells whether top-k, top-p
    or min-p may drop tokens.
    """

    prompts: int
    rows: int
    lanes: int
    prefilled: int
    resident: int
    rooms: kv_cache.Rooms
    truncated: bool

    @property
    def of_caches(self) -> tuple[int, int, int, kv_cache.Rooms]:
        """What the sizes of the caches depend on."""
        return self.lanes, self.prefilled, self.resident, self.rooms


def shape_of(prompts: int, rows: int, *, lanes: int, rooms: kv_cache.Rooms, truncated: bool) -> Shape:
    """The bucket for so many prompts and rows.

    Prompts are prefilled by as many as have all their rows under way at once, but few enough to be small beside the
    lanes.  Their last rows may keep them resident for long: there are places for four times as many, or one per lane.
    """
    prompts, rows = _power_of_two(prompts), _power_of_two(rows)
    lanes = min(lanes, rows)
    side_by_side = max(1, lanes * prompts // rows)
    most = min(prompts, side_by_side, max(1, lanes // 4), max(1, PREFILL_TOKENS // rooms.prompt))
    prefilled = _power_of_two(most + 1) // 2  # the greatest that is not more
    resident = min(prompts, min(lanes, 4 * side_by_side) + prefilled)
    return Shape(prompts, rows, lanes, prefilled, resident, rooms, truncated)


def _power_of_two(size: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, size - 1).bit_length()


@flax.struct.dataclass
class Queue:
    """What a shard is asked for: `group` rows of each of its first `count` prompts, up to `limit_B` tokens."""

    prompts: batch.Prompts
    limit_B: Int[batch.AnyArray, "B"]
    count: Int[batch.AnyArray, "_"]
    group: Int[batch.AnyArray, "_"]

    @property
    def num_rows(self) -> Int[batch.AnyScalar, ""]:
        """Rows that are real."""
        return self.count[0] * self.group[0]


@flax.struct.dataclass
class Call:
    """What all shards are told: temperature, top_k, top_p, min_p; the tokens that end a row; the step's key; turns."""

    limits: dict[str, Any]
    stop_ids: Int[batch.AnyArray, "_"]
    key: Key[Array, ""]
    turns: Int[batch.AnyScalar, ""]


@flax.struct.dataclass
class Caches:
    """Keys and values of the lanes, of the prompts that lanes continue, and of those prefilled last."""

    own: kv_cache.Tree
    resident: kv_cache.Tree
    filled: kv_cache.Tree


@flax.struct.dataclass
class Lanes:
    """The row each lane is at (the number of rows: idle), its next token's number, its resident prompt."""

    row_E: Int[Array, "E"]
    turn_E: Int[Array, "E"]
    prompt_E: Int[Array, "E"]
    hidden_ED: Float[Array, "E D"]


@flax.struct.dataclass
class Prompted:
    """Resident prompts: their lengths, how many rows of each have not ended, where each prompt of the queue is.

    And the last hidden states of those prefilled last.
    """

    length_Q: Int[Array, "Q"]
    left_Q: Int[Array, "Q"]
    place_P: Int[Array, "P"]
    hidden_PD: Float[Array, "P D"]


@flax.struct.dataclass
class Counts:
    """How far the shard is: rows started, prompts prefilled; turns and prefills made, lanes busy summed over turns."""

    started: Int[Array, "_"]
    prefilled: Int[Array, "_"]
    turns: Int[Array, "_"]
    prefills: Int[Array, "_"]
    busy: Int[Array, "_"]


@flax.struct.dataclass
class State:
    """Everything between two turns."""

    caches: Caches
    lanes: Lanes
    prompted: Prompted
    counts: Counts
    rollout: batch.Rollout


@jax.named_scope("rollout")
def empty(model: gemma.Model, shape: Shape) -> Caches:
    """Caches with nothing in them."""
    config, rooms = model.config, shape.rooms
    return Caches(
        own=kv_cache.own(config, shape.lanes, rooms),
        resident=kv_cache.resident(config, shape.resident, rooms),
        filled=kv_cache.prompts(config, shape.prefilled, rooms),
    )


@jax.named_scope("rollout")
def begin(caches: Caches, *, model: gemma.Model, shape: Shape) -> State:
    """Nothing started; the caches may hold anything finite."""
    zero, width, room = jnp.zeros(1, jnp.int32), model.config.width, shape.rooms.new
    per_lane = jnp.zeros(shape.lanes, jnp.int32)
    return State(
        caches=caches,
        lanes=Lanes(
            row_E=jnp.full_like(per_lane, shape.rows),
            turn_E=per_lane,
            prompt_E=per_lane,
            hidden_ED=jnp.zeros((shape.lanes, width), model.config.dtype),
        ),
        prompted=Prompted(
            length_Q=jnp.ones(shape.resident, jnp.int32),
            left_Q=jnp.zeros(shape.resident, jnp.int32),
            place_P=jnp.zeros(shape.prompts, jnp.int32),
            hidden_PD=jnp.zeros((shape.prefilled, width), model.config.dtype),
        ),
        counts=Counts(zero, zero, zero, zero, zero),
        rollout=batch.Rollout(
            tokens_BT=jnp.zeros((shape.rows, room), jnp.int32),
            logp_BT=jnp.zeros((shape.rows, room), jnp.float32),
            floor_BT=jnp.full((shape.rows, room), -jnp.inf, jnp.float32),
            length_B=jnp.zeros(shape.rows, jnp.int32),
            stopped_B=jnp.zeros(shape.rows, bool),
        ),
    )


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a shard's loop, with all that does not change while it runs."""

    model: gemma.Model
    shape: Shape
    params: gemma.Params
    adapter: lora.Adapter | None
    queue: Queue
    call: Call

    def advance(self, state: State, ended_B: Bool[Array, "B"]) -> State:
        """The state after `call.turns` more turns, or when all rows have ended; those of `ended_B` end before."""
        ended_E = ended_B[jnp.minimum(state.lanes.row_E, self.shape.rows - 1)]
        state = self._release(state, ended_E & self._live(state))
        last = state.counts.turns[0] + self.call.turns
        once_laid_out = self.model.unstacked(self.params) if placement.platform() == "cpu" else self.params
        loop = dataclasses.replace(self, params=once_laid_out)

        def unfinished(state: State) -> Bool[Array, ""]:
            waiting = state.counts.started[0] < self.queue.num_rows
            return (state.counts.turns[0] < last) & (waiting | self._live(state).any())

        def body(state: State) -> State:
            return loop._turn(jax.lax.while_loop(loop._can_start, loop._start, state))

        return jax.lax.while_loop(unfinished, body, state)

    def _live(self, state: State) -> Bool[Array, "E"]:
        return state.lanes.row_E < self.shape.rows

    def _due(self, state: State) -> Bool[Array, ""]:
        """Whether the next row's prompt has not been prefilled."""
        return state.counts.started[0] // self.queue.group[0] >= state.counts.prefilled[0]

    def _can_start(self, state: State) -> Bool[Array, ""]:
        """Whether a row waits, a lane is idle, and the row's prompt is there or has a place to go."""
        waits = (state.counts.started[0] < self.queue.num_rows) & ~self._live(state).all()
        free = (state.prompted.left_Q == 0).sum(dtype=jnp.int32) >= self.shape.prefilled
        return waits & (free | ~self._due(state))

    def _start(self, state: State) -> State:
        """The next row in the first idle lane, its prompt prefilled first if that is due."""
        state = jax.lax.while_loop(self._due, self._prefill, state)
        lanes, prompted, row = state.lanes, state.prompted, state.counts.started[0]
        lane, prompt = jnp.argmin(self._live(state)), row // self.queue.group[0]
        among_filled = prompt % self.shape.prefilled
        own = kv_cache.begin(
            state.caches.own, state.caches.filled, state.caches.resident, row=lane, prompt=among_filled
        )
        return dataclasses.replace(
            state,
            caches=dataclasses.replace(state.caches, own=own),
            lanes=Lanes(
                row_E=lanes.row_E.at[lane].set(row),
                turn_E=lanes.turn_E.at[lane].set(0),
                prompt_E=lanes.prompt_E.at[lane].set(prompted.place_P[prompt]),
                hidden_ED=lanes.hidden_ED.at[lane].set(prompted.hidden_PD[among_filled]),
            ),
            counts=dataclasses.replace(state.counts, started=state.counts.started + 1),
        )

    def _prefill(self, state: State) -> State:
        """The next few prompts of the queue, resident where no row needs what was there."""
        prompted, counts = state.prompted, state.counts
        place_P = jnp.nonzero(prompted.left_Q == 0, size=self.shape.prefilled, fill_value=0)[0]
        number_P = counts.prefilled[0] + jnp.arange(self.shape.prefilled)
        pick = lambda x: jnp.asarray(x)[jnp.minimum(number_P, self.shape.prompts - 1)]  # noqa: E731
        length_P = pick(self.queue.prompts.length_P)
        with jax.named_scope("prefill"):
            hidden_PD, filled = self.model.prefill(
                self.params, pick(self.queue.prompts.tokens_PT), length_P, state.caches.filled, adapter=self.adapter
            )
        rows_P = jnp.where(number_P < self.queue.count[0], self.queue.group[0], 0)
        return dataclasses.replace(
            state,
            caches=dataclasses.replace(
                state.caches, resident=kv_cache.keep(state.caches.resident, filled, place_P), filled=filled
            ),
            prompted=Prompted(
                length_Q=prompted.length_Q.at[place_P].set(length_P),
                left_Q=prompted.left_Q.at[place_P].set(rows_P),
                place_P=prompted.place_P.at[number_P].set(place_P, mode="drop"),
                hidden_PD=hidden_PD,
            ),
            counts=dataclasses.replace(
                counts, prefilled=counts.prefilled + self.shape.prefilled, prefills=counts.prefills + 1
            ),
        )

    def _turn(self, state: State) -> State:
        """One token more in every lane."""
        lanes, live_E = state.lanes, self._live(state)
        with jax.named_scope("sample"):
            token_E, logp_E, floor_E = self.model.sample(
                self.params, lanes.hidden_ED, self._keys(lanes), self.call.limits, truncated=self.shape.truncated
            )
        stop_E = (token_E[:, None] == self.call.stop_ids).any(axis=1)
        rollout = state.rollout
        where = (lanes.row_E, lanes.turn_E)
        put = lambda held_BT, new_E: jnp.asarray(held_BT).at[where].set(new_E, mode="drop")  # noqa: E731
        rollout = batch.Rollout(
            tokens_BT=put(rollout.tokens_BT, token_E),
            logp_BT=put(rollout.logp_BT, logp_E),
            floor_BT=put(rollout.floor_BT, floor_E),
            length_B=jnp.asarray(rollout.length_B).at[lanes.row_E].set(lanes.turn_E + 1, mode="drop"),
            stopped_B=jnp.asarray(rollout.stopped_B).at[lanes.row_E].set(stop_E, mode="drop"),
        )
        with jax.named_scope("decode"):
            shared = kv_cache.Shared(state.caches.resident, state.prompted.length_Q, lanes.prompt_E)
            hidden_ED, own = self.model.decode(
                self.params,
                token_E,
                lanes.turn_E,
                state.caches.own,
                shared,
                rooms=self.shape.rooms,
                adapter=self.adapter,
            )
        limit_E = jnp.asarray(self.queue.limit_B)[jnp.minimum(lanes.row_E, self.shape.rows - 1)]
        done_E = stop_E | (lanes.turn_E + 1 >= limit_E) | ~jnp.isfinite(logp_E)
        counts = state.counts
        state = State(
            caches=dataclasses.replace(state.caches, own=own),
            lanes=dataclasses.replace(lanes, turn_E=lanes.turn_E + live_E.astype(jnp.int32), hidden_ED=hidden_ED),
            prompted=state.prompted,
            counts=dataclasses.replace(counts, turns=counts.turns + 1, busy=counts.busy + live_E.sum(dtype=jnp.int32)),
            rollout=rollout,
        )
        return self._release(state, done_E & live_E)

    def _release(self, state: State, done_E: Bool[Array, "E"]) -> State:
        """The state with these lanes idle and their prompts needed by a row less each."""
        lanes, prompted = state.lanes, state.prompted
        left_Q = prompted.left_Q.at[lanes.prompt_E].add(-done_E.astype(jnp.int32))
        return dataclasses.replace(
            state,
            lanes=dataclasses.replace(
                lanes,
                row_E=jnp.where(done_E, self.shape.rows, lanes.row_E),
                turn_E=jnp.where(done_E, 0, lanes.turn_E),
            ),
            prompted=dataclasses.replace(prompted, left_Q=left_Q),
        )

    def _keys(self, lanes: Lanes) -> Key[Array, "E"]:
        """fold_in(key, prompt id, sample, position) of every lane."""
        row_E = jnp.minimum(lanes.row_E, self.shape.rows - 1)
        prompt_E, fold = row_E // self.queue.group[0], jax.random.fold_in
        fold_each = functools.partial(jax.vmap, fold)
        of_prompt_E = jax.vmap(fold, in_axes=(None, 0))(self.call.key, jnp.asarray(self.queue.prompts.id_P)[prompt_E])
        return fold_each()(fold_each()(of_prompt_E, row_E - prompt_E * self.queue.group[0]), lanes.turn_E)
