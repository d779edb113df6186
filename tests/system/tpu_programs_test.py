"""What runs on a pod compiles for one, with our kernels in it, and holds no logits."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import slices

from thinkfirst.core import sharding
from thinkfirst.models import config, kv_cache
from thinkfirst.rl import batch, learner, objective, rollout_program, scheduler

PROMPT, NEW = 256, 512
MESHES = {"rows": {}, "both": {"data": 2, "fsdp": 2, "tensor": 2}}


def experience(num_rows, devices):
    """Rows of PROMPT + NEW tokens as shapes on the mesh."""
    completion = np.zeros((num_rows, NEW))
    length = np.ones(num_rows, np.int32)
    rows = batch.Experience(
        tokens_BT=np.zeros((num_rows, PROMPT + NEW), np.int32),
        prompt_length_B=length,
        completion_BT=completion.astype(np.int32),
        completion_length_B=length,
        old_logp_BT=completion.astype(np.float32),
        floor_BT=completion.astype(np.float32),
        advantage_B=np.ones(num_rows, np.float32),
    )
    return slices.on(rows, sharding.rows(devices))


def kernels_of(text):
    """How often each Mosaic kernel stands in a compiled program."""
    return [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]


def largest(text):
    """The most elements of any array in a compiled program."""
    shapes = re.findall(r"(?:bf16|f32)\[([\d,]+)\]", text)
    return max(int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes)


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("make", [config.gemma3_1b, config.gemma2_2b])
def test_the_grpo_step_takes_the_kernels(make, shape):
    devices = slices.layout("v5e:2x4", **MESHES[shape])
    sizes = dataclasses.replace(make(), num_layers=2, pattern=("local", "global"))
    model, params, factors = slices.policy(sizes, devices)
    transform = optax.adam(1e-3)
    state = slices.on(jax.eval_shape(transform.init, factors), sharding.replicated(devices))
    step = learner.make_step(model, transform, objective.LossConfig(), micro_batches=1, remat=True)
    temperature = slices.on(jax.ShapeDtypeStruct((), jnp.float32), sharding.replicated(devices))
    t0=time.time()
    compiled = step.lower(factors, state, params, experience(16, devices), temperature).compile()
    text = compiled.as_text()
    print(time.time()-t0, len(kernels_of(text)), compiled.memory_analysis().temp_size_in_bytes / 2**20, largest(text))
    assert kernels_of(text)
    assert largest(text) <= sizes.vocab_size * sizes.width


ROOMS = kv_cache.Rooms(256, 1024)


def advance(sizes, devices, *, lanes, truncated=False):
    """The engine's program, with rows for two rounds of its lanes in groups of 8, compiled for a slice."""
    model, params, factors = slices.policy(sizes, devices)
    shape = scheduler.shape_of(2 * lanes // 8, 2 * lanes, lanes=lanes, rooms=ROOMS, truncated=truncated)
    return rollout_program.Programs(model, devices).lower(shape, params, factors).compile()


@pytest.mark.slow
@pytest.mark.parametrize("truncated", [False, True])
def test_the_engine_takes_the_kernels_and_keeps_no_logits(truncated):
    sizes = dataclasses.replace(config.gemma3_1b(), num_layers=2, pattern=("local", "global"))
    t0 = time.time()
    compiled = advance(sizes, slices.layout("v5e:2x4"), lanes=48, truncated=truncated)
    text = compiled.as_text()
    print(time.time() - t0, len(kernels_of(text)), compiled.memory_analysis().temp_size_in_bytes / 2**20)
    assert len(kernels_of(text)) >= 5  # attention of two prefilled layers and of two decoded ones, and the sampler
    assert (f"[48,{sizes.vocab_size}]" in text) == truncated
