"""Nothing is wasted: lanes are busy to the end, a prompt goes through the model once, a call compiles nothing."""

import jax
import numpy as np
import pytest

from thinkfirst.core import mesh
from thinkfirst.models import config, gemma, kv_cache
from thinkfirst.rl import batch, rollout

pytestmark = pytest.mark.long
TINY = config.GemmaConfig(
    generation=3, vocab_size=32, num_layers=2, width=8, ff_width=8, num_heads=1, num_kv_heads=1, head_dim=8, window=16,
    pattern=("local", "global"), query_scalar=8, dtype="float32",
)  # fmt: skip
LANES, GROUP, ROOM = 64, 8, 640


def long_tail(num_rows):
    """Log-normal lengths of mean 80, 640 at most."""
    drawn = np.random.default_rng(0).lognormal(np.log(80) - 0.5 * 0.8**2, 0.8, num_rows)
    return np.clip(np.rint(drawn), 1, ROOM).astype(np.int32)


def test_lanes_are_busy_while_rows_wait():
    """4,096 samples of very different lengths through 64 lanes: .92 of them busy, a tenth more turns than must be."""
    layout = mesh.make(mesh.MeshConfig(), jax.devices()[:1])
    model = gemma.Model(TINY, layout)
    limit_B = long_tail(4096)
    assert 75 <= limit_B.mean() <= 85 and limit_B.max() == ROOM
    num_prompts = len(limit_B) // GROUP
    prompts = batch.pad_prompts([[2, 3, 4]] * num_prompts, list(range(num_prompts)), 16)
    sampling = batch.Sampling.of(max_new_tokens=1).replace(max_new_tokens=limit_B)
    engine = rollout.Engine(model, layout, room=ROOM, stop_ids=(), lanes=LANES)
    found = engine.sample(model.init(0), None, prompts, sampling, jax.random.key(0), group=GROUP)
    assert found.length_B.tolist() == limit_B.tolist()
    assert engine.metrics["rollout/occupancy"] >= 0.92
    assert engine.metrics["rollout/turns"] <= 1.10 * limit_B.sum() / LANES
    assert engine.metrics["rollout/prefills"] * prefilled_at_once(engine, num_prompts) == num_prompts


def prefilled_at_once(engine, num_prompts):
    return engine.bucket(num_prompts, GROUP, 16, truncated=False).prefilled


def flops_of_prefill(model, rows, rooms):
    """By XLA's own count."""
    params, filled = model.init(0), kv_cache.prompts(TINY, rows, rooms)
    tokens = np.ones((rows, rooms.prompt), np.int32)
    lowered = jax.jit(model.prefill).lower(params, tokens, np.ones(rows, np.int32), filled)
    return lowered.compile().cost_analysis()["flops"]


def test_prefill_takes_a_gth_of_what_it_does_row_by_row():
    """Prompts go through the model once (the test above counts how often): for G samples, 1 / G of the operations."""
    layout = mesh.make(mesh.MeshConfig(), jax.devices()[:1])
    model, rooms = gemma.Model(TINY, layout), kv_cache.Rooms(64, ROOM)
    ratio = flops_of_prefill(model, 16 * GROUP, rooms) / flops_of_prefill(model, 16, rooms)
    assert ratio == pytest.approx(GROUP, rel=0.02)
