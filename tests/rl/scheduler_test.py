"""What a bucket of the engine has room for."""

import jax
import pytest

from thinkfirst.models import config, gemma, kv_cache
from thinkfirst.rl import scheduler

ROOMS = kv_cache.Rooms(256, 1024)


def test_a_bucket_is_the_next_power_of_two():
    shape = scheduler.shape_of(24, 192, lanes=64, rooms=ROOMS, truncated=False)
    assert (shape.prompts, shape.rows, shape.lanes) == (32, 256, 64)
    assert (shape.prefilled, shape.resident) == (8, 32)  # 64 lanes are 8 groups of 8


def test_few_rows_need_few_lanes():
    shape = scheduler.shape_of(1, 3, lanes=64, rooms=ROOMS, truncated=True)
    assert (shape.prompts, shape.rows, shape.lanes, shape.prefilled, shape.resident) == (1, 4, 4, 1, 1)


def test_prompts_of_single_rows_are_prefilled_in_small_parts():
    shape = scheduler.shape_of(512, 512, lanes=128, rooms=ROOMS, truncated=True)
    assert (shape.prefilled, shape.resident) == (32, 160)
    long = scheduler.shape_of(512, 512, lanes=128, rooms=kv_cache.Rooms(4096, 64), truncated=True)
    assert long.prefilled == 2


@pytest.mark.parametrize(("group", "share"), [(1, 0.55), (8, 0.51)])
def test_gemma3_1b_at_1280_tokens_needs_half_a_full_cache(group, share):
    """128 lanes, the prompts that they may be at, and those just prefilled, against 1,280 slots in every layer."""
    sizes, lanes = config.gemma3_1b(), 128
    shape = scheduler.shape_of(1024 // group, 1024, lanes=lanes, rooms=ROOMS, truncated=False)
    caches = jax.eval_shape(lambda: scheduler.empty(gemma.Model(sizes), shape))
    size = sum(leaf.size for leaf in jax.tree.leaves(caches))
    assert size <= share * 2 * lanes * 1280 * sizes.num_layers * sizes.head_dim
