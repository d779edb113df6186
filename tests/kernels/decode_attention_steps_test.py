"""Which blocks the kernel of decoding asks for, walked by hand over its grid."""

import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.kernels.decode_attention import groups, plans, steps


def _plan(batch=8, prompts=4, tokens=64, slots=64, **settings):
    query, cache = jnp.zeros((batch, 4, 64)), jnp.zeros((1, batch, slots, 1, 64))
    settings = {"scale": 1.0, "window": 0, "soft_cap": 0.0, "known_position": None, "known_length": None, **settings}
    return plans.make(query, cache, prompts=prompts, tokens=tokens, block=32, rows=8, **settings)


def _walked(index_map, plan, position, group, length):
    """The index at every step of the grid."""
    looked_at_B = groups.looked_at(jnp.array(group), jnp.array(position), plan.prompts, plan.window)
    numbers = (jnp.zeros(1, int), jnp.array(position), looked_at_B, *groups.runs(looked_at_B, plan.prompts))
    numbers = (*numbers, jnp.array(length))
    return [tuple(map(int, index_map(jnp.int32(at), *numbers, plan=plan, ndim=5))) for at in range(plan.steps)]


def _fetched(walk):
    """The blocks that are read: where the index differs from that of the step before."""
    return [now for before, now in zip([None, *walk], walk, strict=False) if now != before]


def test_each_prompt_is_read_once_and_only_if_a_row_looks_at_it(monkeypatch):
    """Rows of prompts 2, 1, 2, ... in any order; 0 and 3 have no row, 1 has one block in use, 2 has two."""
    monkeypatch.setattr(plans, "PROMPT_BLOCK", 32)
    walk = _walked(steps.prompt_block, _plan(), [0] * 8, [2, 1, 2, 2, 1, 2, 2, 2], [64, 9, 64, 64])
    assert [(p, t) for _, p, _, t, _ in _fetched(walk)] == [(1, 0), (2, 0), (2, 1)]


@pytest.mark.parametrize(("position", "prompts"), [([-1, 5] * 4, [3]), ([31, 5] * 4, [3]), ([5, -1] * 4, [0])])
def test_idle_rows_and_rows_whose_window_has_left_the_prompt_read_none(position, prompts):
    walk = _walked(steps.prompt_block, _plan(window=32), position, [0, 3] * 4, [20] * 4)
    assert [p for _, p, _, _, _ in _fetched(walk)] == prompts


def test_own_caches_are_read_as_far_as_each_row_has_come():
    """Of two blocks, a row at 31 reads one, a row at 32 both, and so does one whose ring has wrapped."""
    plan, position = _plan(batch=4, prompts=0), jnp.array([31, 32, -1, 200])
    data = steps.Data.of((jnp.zeros(1, int), position), plan)
    read = [[bool(steps.Step(at, data, plan).reads(b)) for b in range(4)] for at in range(plan.own_steps)]
    assert read == [[True, True, True, True], [False, True, False, True]]


def test_what_is_known_when_compiling_reads_the_same_blocks_as_data():
    known = _plan(known_position=20, known_length=40)
    operands = ([20] * 8, np.arange(8) // 2, [40] * 4)
    assert _walked(steps.prompt_block, known, *operands) == _walked(steps.prompt_block, _plan(), *operands)
