"""The rollout engine: prompts in, sampled completions and their log-probs out, one compiled program per shape.

Inside `shard_map` over the batch axes each data shard prefills its prompts once, forks the cache for the G samples of
each group and runs its own loop, which ends when its own rows have ended.  What is a shape: the number of prompts, G,
the padded prompt length, the room for new tokens, whether tokens may be dropped.  What is data: sampler settings,
limits, stop ids, keys.

Randomness is fold_in(root, step, prompt id, sample, position): a sample comes out the same whatever its neighbours,
its place in the batch and the mesh are.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from thinkfirst.core import mesh as mesh_lib
from thinkfirst.core import sharding
from thinkfirst.kernels.sample import api as sample_kernel
from thinkfirst.models import gemma, kv_cache, lora
from thinkfirst.rl import batch


class Engine:
    """Samples G completions of each prompt from a policy (parameters, adapter)."""

    def __init__(
        self, model: gemma.Model, mesh: Mesh, *, group: int, room: int, stop_ids: tuple[int, ...], full: bool = False
    ) -> None:
        """`room` is the most new tokens a call may ask for; `full` turns the local layers' rings off (for tests)."""
        self.room, self.group = room, group
        self._mesh, self._shards = mesh, mesh_lib.num_row_shards(mesh)
        self._stop_ids = jax.device_put(np.array(stop_ids, np.int32), sharding.replicated(mesh))
        rows, same = sharding.rows_spec(), sharding.replicated_spec()
        self._programs = {
            truncated: jax.jit(
                jax.shard_map(
                    functools.partial(_generate, model=model, group=group, room=room, full=full, truncated=truncated),
                    mesh=mesh,
                    in_specs=(same, same, rows, same, same, same),
                    out_specs=rows,
                    axis_names=set(mesh_lib.BATCH_AXES),
                    check_vma=False,
                )
            )
            for truncated in (False, True)
        }

    def sample(
        self,
        params: gemma.Params,
        adapter: lora.Adapter | None,
        prompts: batch.Prompts,
        sampling: batch.Sampling,
        key: Key[Array, ""],
    ) -> batch.Rollout:
        """Completions of all prompts; row p * G + g is sample g of prompt p.  `key` is fold_in(root, step)."""
        asked = int(sampling.max_new_tokens)
        if asked > self.room:
            raise ValueError(f"{asked} new tokens asked of an engine with room for {self.room}")
        num_prompts = prompts.length_P.shape[0]
        padded = jax.tree.map(functools.partial(_pad_rows, multiple=self._shards), prompts)
        padded = jax.device_put(padded, sharding.rows(self._mesh))
        program = self._programs[sampling.truncated]
        sampling, key = jax.device_put((sampling, key), sharding.replicated(self._mesh))
        rollout = program(params, adapter, padded, sampling, key, self._stop_ids)
        return jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, num_prompts * self.group), rollout)


def _pad_rows(x: Any, multiple: int) -> np.ndarray:
    """Repeats the last row until the row count divides evenly among shards."""
    x = np.asarray(x)
    return np.concatenate([x, np.repeat(x[-1:], -len(x) % multiple, axis=0)])


def _generate(  # noqa: PLR0917  shard_map passes its operands by position
    params: gemma.Params,
    adapter: lora.Adapter | None,
    prompts: batch.Prompts,
    sampling: batch.Sampling,
    key: Key[Array, ""],
    stop_ids: Int[Array, "_"],
    *,
    model: gemma.Model,
    group: int,
    room: int,
    full: bool,
    truncated: bool,
) -> batch.Rollout:
    """One shard's work: prefill, fork, then a token per row and turn until every row has stopped."""
    tokens_PT, length_P = jnp.asarray(prompts.tokens_PT), jnp.asarray(prompts.length_P)
    num_prompts, prompt_room = tokens_PT.shape
    num_rows = num_prompts * group
    key_B = _row_keys(key, prompts.id_P, group)
    pick = functools.partial(
        _pick,
        table_VD=params["embedding"],
        soft_cap=model.config.final_soft_cap,
        sampling=sampling,
        truncated=truncated,
        key_B=key_B,
    )

    with jax.named_scope("prefill"):
        cache = kv_cache.init(model.config, num_prompts, prompt_room + room, full=full)
        hidden_PD, cache = model.prefill(params, tokens_PT, length_P, cache, adapter=adapter)
    cache = kv_cache.fork(cache, group)
    start_B = jnp.repeat(length_P, group)
    rollout = batch.Rollout(
        tokens_BT=jnp.zeros((num_rows, room), jnp.int32),
        logp_BT=jnp.zeros((num_rows, room), jnp.float32),
        floor_BT=jnp.full((num_rows, room), -jnp.inf, jnp.float32),
        length_B=jnp.zeros((num_rows,), jnp.int32),
        stopped_B=jnp.zeros((num_rows,), bool),
    )
    drawn = pick(jnp.repeat(hidden_PD, group, axis=0), 0)
    rollout = _record(rollout, 0, drawn, stop_ids)

    def unfinished(carry: Any) -> Bool[Array, ""]:
        turn, _, rollout, _ = carry
        return (turn < sampling.max_new_tokens) & ~rollout.stopped_B.all()

    def one_more(carry: Any) -> Any:
        turn, token_B, rollout, cache = carry
        with jax.named_scope("decode"):
            hidden_BD, cache = model.decode(params, token_B, start_B + turn - 1, cache, adapter=adapter)
        with jax.named_scope("sample"):
            drawn = pick(hidden_BD, turn)
        return turn + 1, drawn[0], _record(rollout, turn, drawn, stop_ids), cache

    return jax.lax.while_loop(unfinished, one_more, (jnp.int32(1), drawn[0], rollout, cache))[2]


def _row_keys(key: Key[Array, ""], id_P: Any, group: int) -> Key[Array, "B"]:
    """fold_in(fold_in(key, prompt id), sample) of every row."""
    of_sample = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    of_prompt = jax.vmap(lambda prompt_id: of_sample(jax.random.fold_in(key, prompt_id), jnp.arange(group)))
    return of_prompt(id_P).reshape(-1)


def _pick(
    hidden_BD: Float[Array, "B D"],
    turn: Any,
    *,
    table_VD: Float[Array, "V D"],
    soft_cap: float,
    sampling: batch.Sampling,
    truncated: bool,
    key_B: Key[Array, "B"],
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """Token, log-prob and floor drawn with the keys of this position."""
    return sample_kernel.sample(
        hidden_BD,
        table_VD,
        jax.vmap(jax.random.fold_in, in_axes=(0, None))(key_B, turn),
        temperature=jnp.asarray(sampling.temperature),
        top_k=jnp.asarray(sampling.top_k),
        top_p=jnp.asarray(sampling.top_p),
        min_p=jnp.asarray(sampling.min_p),
        truncated=truncated,
        soft_cap=soft_cap,
    )


def _record(rollout: batch.Rollout, turn: Any, drawn: tuple[Any, Any, Any], stop_ids: Any) -> batch.Rollout:
    """The rollout with this turn's tokens in the rows that had not stopped before it."""
    live_B = ~rollout.stopped_B

    def put(column_BT: jax.Array, new_B: jax.Array) -> jax.Array:
        return column_BT.at[:, turn].set(jnp.where(live_B, new_B, column_BT[:, turn]))

    return batch.Rollout(
        tokens_BT=put(rollout.tokens_BT, drawn[0]),
        logp_BT=put(rollout.logp_BT, drawn[1]),
        floor_BT=put(rollout.floor_BT, drawn[2]),
        length_B=rollout.length_B + live_B.astype(jnp.int32),
        stopped_B=rollout.stopped_B | (live_B & (drawn[0][:, None] == stop_ids).any(axis=1)),
    )
