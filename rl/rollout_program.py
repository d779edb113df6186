"""The programs of the rollout engine as a mesh runs them, compiled for a bucket, be its devices there or not."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from thinkfirst.core import mesh as mesh_lib
from thinkfirst.core import sharding
from thinkfirst.kernels import on_mesh
from thinkfirst.models import gemma, kv_cache, lora
from thinkfirst.rl import batch, scheduler

Policy = tuple[gemma.Params, lora.Adapter | None]


class Programs:
    """What the engine runs: `empty` makes caches, `begin` a state of them, `advance` takes the state some turns on.

    `parts` are the steps of `advance` by themselves, to be timed.  The state is donated to `advance`, the caches to all
    others.  Each is made once for a bucket.
    """

    def __init__(self, model: gemma.Model, mesh: Mesh) -> None:
        self.compiles = 0
        self._model, self._mesh = model, mesh
        self.empty, self.begin, self.advance = map(functools.cache, (self._empty, self._begin, self._advance))
        self.parts = functools.cache(self._parts)

    def trace(self, shape: scheduler.Shape, params: Any, adapter: Any, *, num_stop_ids: int = 8) -> Any:
        """`advance` traced for parameters given as shapes with their shardings."""
        shards = mesh_lib.num_row_shards(self._mesh)
        rows, same = sharding.rows(self._mesh), sharding.replicated(self._mesh)
        caches = jax.eval_shape(lambda: scheduler.empty(self._model, shape))
        state = jax.eval_shape(lambda caches: scheduler.begin(caches, model=self._model, shape=shape), caches)
        ended_B = np.zeros(shape.rows, bool)
        integers = lambda *sizes: np.zeros(sizes, np.int32)  # noqa: E731
        prompts = batch.Prompts(
            integers(shape.prompts, shape.rooms.prompt), integers(shape.prompts), np.zeros(shape.prompts, np.uint32)
        )
        queue = scheduler.Queue(prompts, integers(shape.rows), integers(1), integers(1))
        limits = {"temperature": np.float32(0), "top_k": np.int32(0), "top_p": np.float32(0), "min_p": np.float32(0)}
        key = jax.eval_shape(lambda: jax.random.key(0))
        call: Any = scheduler.Call(limits, integers(num_stop_ids), key, np.int32(0))
        of_all = lambda tree, axis, where: jax.tree.map(  # noqa: E731
            functools.partial(_of_all_shards, shards=shards, axis=axis, where=where), tree
        )
        layout = self._layout()
        state = _state(
            of_all(state.caches, 1, layout.caches),
            *(of_all(part, 0, rows) for part in (state.lanes, state.prompted, state.counts, state.rollout)),
        )
        call = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=same), call)
        return self.advance(shape).trace(
            state, (params, adapter), of_all(queue, 0, rows), of_all(ended_B, 0, rows), call
        )

    def _empty(self, shape: scheduler.Shape) -> Any:
        make = functools.partial(scheduler.empty, self._model, shape)
        return self._mapped(make, (), _caches_spec(), layout=self._layout().caches)

    def _begin(self, shape: scheduler.Shape) -> Any:
        begin = functools.partial(scheduler.begin, model=self._model, shape=shape)
        return self._mapped(begin, (_caches_spec(),), _state_spec(), layout=self._layout(), donate=True)

    def _advance(self, shape: scheduler.Shape) -> Any:
        rows, same = sharding.rows_spec(), sharding.replicated_spec()

        @jax.named_scope("rollout")
        def advance(state: Any, policy: Any, queue: Any, ended_B: Any, call: Any) -> Any:
            self.compiles += 1  # when it is traced, that is
            params, adapter = policy
            return scheduler.Program(self._model, shape, params, adapter, queue, call).advance(state, ended_B)

        operands = (_state_spec(), same, rows, rows, same)
        return self._mapped(advance, operands, _state_spec(), layout=self._layout(), donate=True)

    def _parts(self, shape: scheduler.Shape) -> dict[str, Any]:
        """(caches, (parameters, adapter), call) -> caches', something of what was computed."""
        same, rows, layout = sharding.replicated_spec(), sharding.rows_spec(), self._layout()
        compiled = functools.partial(
            self._mapped,
            operands=(_caches_spec(), same, same),
            results=(_caches_spec(), rows),
            layout=(layout.caches, layout.counts),
            donate=True,
        )
        steps = {"prefill": _prefill_alone, "decode": _decode_alone, "sample": _sample_alone}
        return {name: compiled(functools.partial(step, self._model, shape)) for name, step in steps.items()}

    def _mapped(self, function: Any, operands: Any, results: Any, *, layout: Any, donate: bool = False) -> Any:
        """The compiled `function` of each data shard."""
        mapped = jax.shard_map(
            function,
            mesh=self._mesh,
            in_specs=operands,
            out_specs=results,
            axis_names=set(mesh_lib.BATCH_AXES),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0 if donate else (), out_shardings=layout)

    def _layout(self) -> Any:
        """Where the state lives: key/value heads of caches over `tensor` where they divide."""
        whole = on_mesh.whole_heads(self._mesh, self._model.config.num_kv_heads)
        caches = NamedSharding(self._mesh, sharding.work_spec("LBSK", whole=whole))
        return _state(caches, *[sharding.rows(self._mesh)] * 4)


@jax.named_scope("timing")
def _prefill_alone(
    model: gemma.Model, shape: scheduler.Shape, caches: scheduler.Caches, policy: Policy, call: scheduler.Call
) -> tuple[scheduler.Caches, Float[Array, "P D"]]:
    """What one prefill of the loop computes, on prompts of one token said again and again."""
    length_P = jnp.full(shape.prefilled, shape.rooms.prompt, jnp.int32)
    tokens_PT = jnp.ones((shape.prefilled, shape.rooms.prompt), jnp.int32)
    hidden_PD, filled = model.prefill(policy[0], tokens_PT, length_P, caches.filled, adapter=policy[1])
    resident = kv_cache.keep(caches.resident, filled, jnp.arange(shape.prefilled))
    return dataclasses.replace(caches, resident=resident, filled=filled), hidden_PD


@jax.named_scope("timing")
def _decode_alone(
    model: gemma.Model, shape: scheduler.Shape, caches: scheduler.Caches, policy: Policy, call: scheduler.Call
) -> tuple[scheduler.Caches, Float[Array, "E D"]]:
    """What decoding computes in one turn, half-way through the room."""
    token_E = jnp.zeros(shape.lanes, jnp.int32)
    length_Q = jnp.full(shape.resident, shape.rooms.prompt, jnp.int32)
    shared = kv_cache.Shared(caches.resident, length_Q, jnp.arange(shape.lanes) * shape.resident // shape.lanes)
    hidden_ED, own = model.decode(
        policy[0],
        token_E,
        token_E + shape.rooms.new // 2,
        caches.own,
        shared,
        rooms=shape.rooms,
        adapter=policy[1],
    )
    return dataclasses.replace(caches, own=own), hidden_ED


@jax.named_scope("timing")
def _sample_alone(
    model: gemma.Model, shape: scheduler.Shape, caches: scheduler.Caches, policy: Policy, call: scheduler.Call
) -> tuple[scheduler.Caches, Int[Array, "E"]]:
    """What sampling computes in one turn."""
    hidden_ED = jnp.ones((shape.lanes, model.config.width), model.config.dtype)
    key_E = jax.random.split(call.key, shape.lanes)
    return caches, model.sample(policy[0], hidden_ED, key_E, call.limits, truncated=shape.truncated)[0]


def _caches_spec() -> Any:
    return sharding.work_spec("LB", axes=mesh_lib.BATCH_AXES)


def _state_spec() -> Any:
    """Caches are spread by their second axis, all else by its first."""
    return _state(_caches_spec(), *[sharding.rows_spec()] * 4)


def _state(caches: Any, *rest: Any) -> Any:
    return scheduler.State(caches, *rest)


def _of_all_shards(leaf: Any, *, shards: int, axis: int, where: NamedSharding) -> jax.ShapeDtypeStruct:
    """A shard's array as that of all shards."""
    sizes = list(leaf.shape)
    sizes[axis] *= shards
    return jax.ShapeDtypeStruct(tuple(sizes), leaf.dtype, sharding=where)
