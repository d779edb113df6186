"""Which blocks the kernel of decoding asks for, walked by hand over its grid."""

import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.kernels.decode_attention import groups, plans, steps


def _plan(batch=8, prompts=4, tokens=64, slots=64, **settings):
    query, cache = jnp.zeros((batch, 4, 64)), jnp.zeros((1, batch, slots, 1, 64))
    settings = {"scale": 1.0, "window": 0, "soft_cap": 0.0, "known_position": None, "known_length": None, **settings}
    return plans.make(query, cache, prompts=prompts, tokens=tokens, block=32, **settings)


def _walked(index_map, plan, position, group, length):
    """The index at every step of the grid."""
    looked_at_B = groups.looked_at(jnp.array(group), jnp.array(position), plan.prompts, plan.window)
    numbers = (jnp.zeros(1, int), jnp.array(position), looked_at_B, *groups.runs(looked_at_B, plan.prompts))
    numbers = (*numbers, jnp.array(length))
    return [tuple(map(int, index_map(jnp.int32(at), *numbers, plan=plan))) for at in range(plan.steps)]


def _fetched(walk):
    """The blocks that are read: where the index differs from that of the step before."""
    return [now for before, now in zip([None, *walk], walk, strict=False) if now != before]


def test_each_prompt_is_read_once_and_only_if_a_row_looks_at_it():
    """Rows of prompts 2, 1, 2, ... in any order; 0 and 3 have no row, 1 has one block in use, 2 has two."""
    walk = _walked(steps.prompt_block, _plan(), [0] * 8, [2, 1, 2, 2, 1, 2, 2, 2], [64, 9, 64, 64])
    assert [(p, t) for _, p, _, t, _ in _fetched(walk)] == [(1, 0), (2, 0), (2, 1)]


@pytest.mark.parametrize(("position", "prompts"), [([-1, 5] * 4, [3]), ([31, 5] * 4, [3]), ([5, -1] * 4, [0])])
def test_idle_rows_and_rows_whose_window_has_left_the_prompt_read_none(position, prompts):
    walk = _walked(steps.prompt_block, _plan(window=32), position, [0, 3] * 4, [20] * 4)
    assert [p for _, p, _, _, _ in _fetched(walk)] == prompts


def test_own_caches_are_read_up_to_the_last_block_in_use():
    """Rows 0-7 reach position 31, rows 8-15 position 40: one block and two."""
    plan = _plan(batch=16)
    walk = _walked(steps.own_block, plan, [31] * 8 + [-1] * 7 + [40], [0] * 16, [64] * 4)
    assert [(chunk, s) for _, chunk, _, s, _ in _fetched(walk)] == [(0, 0), (1, 0), (1, 1)]


def test_what_is_known_when_compiling_reads_the_same_blocks_as_data():
    known = _plan(known_position=20, known_length=40)
    operands = ([20] * 8, np.arange(8) // 2, [40] * 4)
    for index_map in (steps.own_block, steps.prompt_block):
        assert _walked(index_map, known, *operands) == _walked(index_map, _plan(), *operands)
