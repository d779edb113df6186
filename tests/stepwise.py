"""Prompts, then a token of each row at a time: how the engine goes through a model, without the engine."""

import functools

import jax
import jax.numpy as jnp

from thinkfirst.models import kv_cache


class Decoder:
    """`hidden_BD` after the prompts; `step` takes one token more of each row."""

    def __init__(self, policy, tokens_PT, length_P, *, new, of_row_B=None, dirt=9):
        """Rows continue prompts `of_row_B` (by default each its own); caches begin as `dirt`, which must not matter."""
        model, params, adapter = policy
        rooms = kv_cache.Rooms(tokens_PT.shape[1], new)
        of_row_B = jnp.arange(len(length_P)) if of_row_B is None else of_row_B
        soil = functools.partial(jax.tree.map, lambda leaf: leaf + dirt)
        filled = soil(kv_cache.prompts(model.config, len(length_P), rooms))
        hidden_PD, filled = jax.jit(model.prefill)(params, tokens_PT, length_P, filled, adapter=adapter)
        held = soil(kv_cache.resident(model.config, len(length_P), rooms))
        held = kv_cache.keep(held, filled, jnp.arange(len(length_P)))
        self._own = soil(kv_cache.own(model.config, len(of_row_B), rooms))
        for row, prompt in enumerate(of_row_B):
            self._own = kv_cache.begin(self._own, filled, held, row=jnp.int32(row), prompt=prompt)
        self.hidden_BD, self._turn = hidden_PD[of_row_B], 0
        shared = kv_cache.Shared(held, length_P, of_row_B)
        decode = functools.partial(model.decode, rooms=rooms, adapter=adapter)
        self._decode = functools.partial(jax.jit(decode), params, shared=shared)

    def step(self, token_B):
        """Hidden states of these tokens."""
        turn_B = jnp.full_like(token_B, self._turn)
        self.hidden_BD, self._own = self._decode(token_B, turn_B, own=self._own)
        self._turn += 1
        return self.hidden_BD
