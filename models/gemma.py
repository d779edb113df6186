"""Gemma 2 and Gemma 3 as one Flax NNX class: layers stacked by period and walked by `lax.scan`.

A model is described once by the module and then split: `Model.params` is a plain dict of stacked arrays, and the
compiled programs receive that dict.  Three ways through the same blocks:

    hidden_BTD          = model.hidden(params, tokens_BT, ...)          whole sequences: training, scoring
    hidden_PD, filled   = model.prefill(params, tokens_PT, ..., filled)       prompts, filling a cache
    hidden_BD, own      = model.decode(params, token_B, turn_B, own, shared)  one token more

and two back to tokens, through the embedding, of which no logits are kept: `token_logprob` and `sample`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from thinkfirst.kernels import on_mesh, prologue
from thinkfirst.models import config as model_config
from thinkfirst.models import kv_cache, layers, lora, quantised
from thinkfirst.models import remat as remat_lib

Params = dict[str, Any]


class Place(NamedTuple):
    """Where in the model an attention is: its kind, stack and layer, the period the scan is at, the layer's cache."""

    kind: model_config.Kind
    stack: str
    layer: str
    period: jax.Array
    cache: Any


class Period(nnx.Module):
    """One run through the pattern of local and global blocks."""

    def __init__(
        self, config: model_config.GemmaConfig, kinds: tuple[model_config.Kind, ...], *, rngs: nnx.Rngs
    ) -> None:
        for i in range(len(kinds)):
            setattr(self, f"layer_{i}", layers.Block(config, rngs=rngs))


class Gemma(nnx.Module):
    """Embedding, stacks of periods, final norm.  The embedding is tied: it also reads the tokens out."""

    def __init__(self, config: model_config.GemmaConfig, *, rngs: nnx.Rngs) -> None:
        table = jax.random.normal(rngs.params(), (config.vocab_size, config.width)) * config.width**-0.5
        self.embedding = nnx.Param(table.astype(config.dtype))
        self.final_norm = layers.RMSNorm(config.width, epsilon=config.norm_epsilon, dtype=config.dtype)
        for i, (kinds, repeats) in enumerate(config.stacks):
            setattr(self, f"stack_{i}", _stacked(config, kinds, repeats, rngs=rngs))


def _stacked(
    config: model_config.GemmaConfig, kinds: tuple[model_config.Kind, ...], repeats: int, *, rngs: nnx.Rngs
) -> Period:
    """`repeats` periods with different weights in one module, stacked along a leading axis L."""

    @nnx.split_rngs(splits=repeats)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs: nnx.Rngs) -> Period:
        return Period(config, kinds, rngs=rngs)

    return make(rngs)


class Model:
    """A configuration and the functions of its parameters; holds no array.

    `mesh` is what its programs will run on: with it, each device runs kernels on its part.  Without one, XLA partitions
    the plain forms.
    """

    def __init__(self, config: model_config.GemmaConfig, mesh: Mesh | None = None) -> None:
        self.config, self.mesh = config, mesh
        module = nnx.eval_shape(lambda: Gemma(config, rngs=nnx.Rngs(0)))
        parts = ["final_norm", *(f"stack_{i}" for i in range(len(config.stacks)))]
        self._graphs = {name: nnx.graphdef(getattr(module, name)) for name in parts}

    @property
    def stored(self) -> "Model":
        """The same model with all weights as they are stored, none as integers."""
        return Model(dataclasses.replace(self.config, base_dtype="stored"), self.mesh)

    def init(self, seed: int) -> Params:
        """Random parameters."""
        return nnx.to_pure_dict(nnx.state(Gemma(self.config, rngs=nnx.Rngs(seed))))

    def shapes(self) -> Params:
        """The tree of parameters as jax.ShapeDtypeStruct."""
        return jax.eval_shape(lambda: self.init(0))

    def unstacked(self, params: Params) -> Params:
        """The same parameters, each stack a tuple of its periods; the functions below take either.

        For a loop on a CPU: XLA would copy every layer out of its stack there, turn after turn.
        """
        of_stacks = {
            f"stack_{i}": tuple(_at(params[f"stack_{i}"], index) for index in range(repeats))
            for i, (_, repeats) in enumerate(self.config.stacks)
        }
        return {**params, **of_stacks}

    def adapted(self) -> lora.Specs:
        """Path -> (einsum, stacked shape) of every weight an adapter is put on."""
        module = nnx.eval_shape(lambda: Gemma(self.config, rngs=nnx.Rngs(0)))
        return {
            tuple(str(name) for name in path): (node.spec, tuple(node.weight.shape))
            for path, node in nnx.iter_graph(module)
            if isinstance(node, layers.Einsum) and path[-1] in lora.TARGETS
        }

    def letters(self) -> Params:
        """The tree of parameters with the dimension letters of each array in its place, e.g. "LDNH"."""
        tree: Params = {"embedding": "VD", "final_norm": {"scale": "D"}}
        module = nnx.eval_shape(lambda: Gemma(self.config, rngs=nnx.Rngs(0)))
        for path, node in nnx.iter_graph(module):
            if isinstance(node, layers.Einsum | layers.RMSNorm) and len(path) > 1:
                owner = tree
                for name in path:
                    owner = owner.setdefault(str(name), {})
                if isinstance(node, layers.Einsum):
                    owner["weight"] = "L" + lora.split(node.spec).weight
                    if self.config.base_dtype != "stored":
                        owner["scale"] = "L" + quantised.letters(node.spec, self.config.base_dtype)
                else:
                    owner["scale"] = "L" + node.letter
        return tree

    def hidden(
        self,
        params: Params,
        tokens_BT: Int[Array, "B T"],
        *,
        segment_BT: Int[Array, "B T"],
        adapter: lora.Adapter | None = None,
        remat: remat_lib.Name = "none",
    ) -> Float[Array, "B T D"]:
        """Final hidden states of whole sequences; a gradient keeps of each layer what `remat` says.

        `segment_BT` tells which tokens may see each other (0: padding).  A segment is one run of a row, and positions
        count from its start: rows may be padded on the left or right, or hold several sequences.
        """

        def attend(place: Place, query: Any, key: Any, value: Any, first: prologue.Prologue) -> Any:
            context = on_mesh.attention(query, key, value, segment_BT, prologue=first, **self._attention(place.kind))
            return context, None

        position_BT = layers.segment_positions(segment_BT)
        return self._run(params, tokens_BT, position_BT, attend, adapter=adapter, remat=remat)[0]

    def prefill(
        self,
        params: Params,
        tokens_PT: Int[Array, "P T"],
        length_P: Int[Array, "P"],
        filled: kv_cache.Tree,
        *,
        adapter: lora.Adapter | None = None,
    ) -> tuple[Float[Array, "P D"], kv_cache.Tree]:
        """Hidden state of each prompt's last token, and `kv_cache.prompts` filled with them."""
        segment_PT = (jnp.arange(tokens_PT.shape[1])[None, :] < length_P[:, None]).astype(jnp.int32)

        def attend(place: Place, query: Any, key: Any, value: Any, first: prologue.Prologue) -> Any:
            query, key = prologue.both(first, query, key)  # outside of the kernel, for the cache wants the keys
            context = on_mesh.attention(query, key, value, segment_PT, **self._attention(place.kind))
            return context, kv_cache.fill(place.cache, place.period, key, value, length_P)

        position_PT = jnp.broadcast_to(jnp.arange(tokens_PT.shape[1]), tokens_PT.shape)
        hidden_PTD, filled = self._run(params, tokens_PT, position_PT, attend, adapter=adapter, cache=filled)
        return jnp.take_along_axis(hidden_PTD, (length_P - 1)[:, None, None], axis=1)[:, 0], filled

    def decode(
        self,
        params: Params,
        token_B: Int[Array, "B"],
        turn_B: Int[Array, "B"],
        own: kv_cache.Tree,
        shared: kv_cache.Shared,
        *,
        rooms: kv_cache.Rooms,
        adapter: lora.Adapter | None = None,
    ) -> tuple[Float[Array, "B D"], kv_cache.Tree]:
        """Hidden state of token number `turn` after the prompt, one per row, and `kv_cache.own` holding it too."""
        position_B = shared.length_Q[shared.of_row_B] + turn_B

        def attend(place: Place, query: Any, key: Any, value: Any, first: prologue.Prologue) -> Any:
            query, key = prologue.both(first, query, key)
            settings, new, pair = self._attention(place.kind), (key[:, 0], value[:, 0]), place.cache.pair
            if rooms.rings(self.config, place.kind):
                context_BNH, pair = on_mesh.append_attention(
                    query[:, 0], new, pair, place.period, position_B, **settings
                )
            else:
                context_BNH, pair = on_mesh.grouped(
                    query[:, 0],
                    new,
                    pair,
                    place.period,
                    turn_B,
                    prompt=shared.layers[place.stack][place.layer].pair,
                    length_P=shared.length_Q,
                    group_B=shared.of_row_B,
                    **{**settings, "window": 0},
                )
            return context_BNH[:, None], kv_cache.Layer(*pair)

        hidden_BTD, own = self._run(params, token_B[:, None], position_B[:, None], attend, adapter=adapter, cache=own)
        return hidden_BTD[:, 0], own

    def token_logprob(
        self,
        params: Params,
        hidden_BTD: Float[Array, "B T D"],
        token_BT: Int[Array, "B T"],
        *,
        floor_BT: Float[Array, "B T"] | None = None,
        temperature: Float[Array, ""] | None = None,
        entropy_gradient: bool = False,
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """(log-prob, entropy) of given tokens, in nats; floors (none: nothing was cut off) are `Rollout.floor_BT`.

        `entropy_gradient` says that the entropy will be differentiated: then it costs no sweep of its own.
        """
        return on_mesh.token_logprob(
            hidden_BTD,
            params["embedding"],
            token_BT,
            jnp.full(token_BT.shape, -jnp.inf) if floor_BT is None else floor_BT,
            mesh=self.mesh,
            temperature=jnp.float32(1.0) if temperature is None else temperature,
            truncated=floor_BT is not None,
            entropy_gradient=entropy_gradient,
            soft_cap=self.config.final_soft_cap,
        )

    def sample(
        self,
        params: Params,
        hidden_BD: Float[Array, "B D"],
        key_B: Key[Array, "B"],
        limits: dict[str, jax.Array],
        **settings: Any,
    ) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
        """(token, log-prob, floor) drawn for each row; `limits` are temperature, top_k and top_p."""
        table_VD, soft_cap = params["embedding"], self.config.final_soft_cap
        return on_mesh.sample(hidden_BD, table_VD, key_B, limits, mesh=self.mesh, soft_cap=soft_cap, **settings)

    def _attention(self, kind: str) -> dict[str, Any]:
        return {
            "mesh": self.mesh,
            "scale": self.config.query_scalar**-0.5,
            "window": self.config.window if kind == "local" else 0,
            "soft_cap": self.config.attention_soft_cap,
        }

    def _turns(self, position_BT: Int[Array, "B T"]) -> dict[model_config.Kind, layers.Turns]:
        """The angles of RoPE of each kind of layer."""
        config, turns = self.config, functools.partial(prologue.turns, position_BT, self.config.head_dim)
        return {
            "local": turns(base=config.local_rope_base, factor=1.0),
            "global": turns(base=config.global_rope_base, factor=config.global_rope_factor),
        }

    def _run(
        self,
        params: Params,
        tokens_BT: jax.Array,
        position_BT: jax.Array,
        attend: Any,
        *,
        adapter: lora.Adapter | None,
        cache: kv_cache.Tree | None = None,
        remat: remat_lib.Name = "none",
    ) -> tuple[jax.Array, Any]:
        """Embed, walk every stack, normalise."""
        factors = lora.scaled(adapter)
        x_BTD = params["embedding"][tokens_BT].astype(self.config.dtype)
        x_BTD = x_BTD * jnp.asarray(self.config.width**0.5, x_BTD.dtype)
        rings: dict[str, Any] = dict(cache or {})
        turns = self._turns(position_BT)
        for i, (kinds, repeats) in enumerate(self.config.stacks):
            name = f"stack_{i}"
            step = functools.partial(
                _period_step, graph=self._graphs[name], stack=(name, kinds), turns=turns, attend=attend, remat=remat
            )
            carry, of_periods = (x_BTD, rings.get(name)), params[name]
            if isinstance(of_periods, tuple):
                for index, period in enumerate(of_periods):
                    carry, _ = step(carry, (jnp.int32(index), period, _at(factors.get(name, {}), index)))
            else:
                carry, _ = jax.lax.scan(step, carry, (jnp.arange(repeats), of_periods, factors.get(name, {})))
            x_BTD, rings[name] = carry
        return nnx.merge(self._graphs["final_norm"], params["final_norm"])(x_BTD), rings


def _at(stack: Any, index: int) -> Any:
    """One period's arrays of a stack's."""
    return jax.tree.map(lambda leaf: leaf[index], stack)


def _period_step(
    carry: Any,
    xs: Any,
    *,
    graph: Any,
    stack: tuple[str, tuple[model_config.Kind, ...]],
    turns: dict[model_config.Kind, layers.Turns],
    attend: Any,
    remat: remat_lib.Name,
) -> tuple[Any, None]:
    """Body of the scan: one period, its parameters and adapter factors in `xs`, the stream and cache carried."""
    (x_BTD, cache), (index, params, factors) = carry, xs
    period, rings = nnx.merge(graph, params), {}
    for i, kind in enumerate(stack[1]):
        name = f"layer_{i}"
        place = Place(kind, stack[0], name, index, None if cache is None else cache[name])
        attend_here = functools.partial(attend, place)
        block = functools.partial(getattr(period, name), attend=attend_here, keeps=remat)
        x_BTD, rings[name] = remat_lib.layer(block, remat)(x_BTD, turns[kind], factors.get(name, {}))
    return (x_BTD, None if cache is None else rings), None
