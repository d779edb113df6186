"""What runs on a pod compiles for one, with our kernels in it, and holds no logits."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import slices
from thinkfirst.core import sharding
from thinkfirst.models import config, gemma, kv_cache
from thinkfirst.rl import learner, objective, packing, rollout_program, scheduler

PROMPT, NEW = 256, 512
pytestmark = pytest.mark.timeout(900)  # the TPU compiler takes its time
MESHES = {"rows": {}, "both": {"data": 2, "fsdp": 2, "tensor": 2}}


def experience(num_rows, devices):
    """Rows of PROMPT + NEW tokens as shapes on the mesh."""
    plan = packing.one_a_row(0, num_rows=num_rows, row_tokens=PROMPT + NEW, room=NEW)
    return slices.on(packing.experience([], plan, truncated=False), sharding.rows(devices))


def kernels_of(text):
    """How often each Mosaic kernel stands in a compiled program."""
    return [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]


def largest(text):
    """The most elements of any array in a compiled program."""
    shapes = re.findall(r"(?:bf16|f32)\[([\d,]+)\]", text)
    return max(int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes)


@pytest.mark.long
@pytest.mark.parametrize(("make", "shape"), [(config.gemma3_1b, "rows"), (config.gemma2_2b, "both")])
def test_the_grpo_step_takes_the_kernels(make, shape):
    devices = slices.layout("v5e:2x4", **MESHES[shape])
    sizes = dataclasses.replace(make(), num_layers=2, pattern=("local", "global"))
    model, params, factors = slices.policy(sizes, devices)
    transform = optax.adam(1e-3)
    state = slices.on(jax.eval_shape(transform.init, factors), sharding.replicated(devices))
    step = learner.make_step(model, transform, objective.LossConfig(), micro_batches=1, remat="full")
    temperature = slices.on(jax.ShapeDtypeStruct((), jnp.float32), sharding.replicated(devices))
    compiled = step.lower(factors, state, params, experience(16, devices), temperature).compile()
    text = compiled.as_text()
    assert kernels_of(text)
    assert largest(text) <= sizes.vocab_size * sizes.width


ROOMS = kv_cache.Rooms(256, 1024)
GIB = 2**30


def engine_shape(lanes, *, truncated=False):
    """Rows for two rounds of the lanes, in groups of 8."""
    return scheduler.shape_of(2 * lanes // 8, 2 * lanes, lanes=lanes, rooms=ROOMS, truncated=truncated)


def per_device(tree):
    """Bytes that each device keeps of arrays given by shape and sharding."""
    sizes = [np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)]
    return int(sum(sizes))


@pytest.mark.long
@pytest.mark.parametrize(
    ("topology", "memory", "make", "lanes"),
    [
        ("v5e:2x4", 16, config.gemma3_1b, 128),
        ("v5e:2x4", 16, config.gemma2_2b, 64),
        ("v5p:2x2x1", 95, config.gemma3_1b, 128),
        ("v6e:2x4", 32, config.gemma3_1b, 128),
    ],
)
def test_the_engine_fits_takes_the_kernels_and_keeps_no_logits(topology, memory, make, lanes):
    """A model of two layers is compiled: temporaries do not grow with layers, weights and caches are counted."""
    devices, whole = slices.layout(topology), make()
    few = dataclasses.replace(whole, num_layers=2, pattern=("local", "global"))
    model, params, factors = slices.policy(few, devices)
    compiled = rollout_program.Programs(model, devices).trace(engine_shape(lanes), params, factors).lower().compile()
    text, temporary = compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes
    assert len(kernels_of(text)) >= 5  # attention of two prefilled layers and of two decoded ones, and the sampler
    assert f"[{lanes},{few.vocab_size}]" not in text
    caches = jax.eval_shape(lambda: scheduler.empty(gemma.Model(whole), engine_shape(lanes)))
    cached = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(caches))
    needed = per_device(slices.policy(whole, devices)[1:]) + cached + temporary
    print(f"{topology} {make.__name__}: {needed / GIB:.2f} GiB, {temporary / GIB:.2f} of them temporary")
    assert needed < 0.97 * memory * GIB


@pytest.mark.long
def test_logits_are_kept_where_tokens_may_be_dropped():
    """So the test above would see them."""
    few = dataclasses.replace(config.gemma3_1b(), num_layers=1, pattern=("local",))
    model, params, factors = slices.policy(few, slices.layout("v5e:2x4"))
    traced = rollout_program.Programs(model, model.mesh).trace(engine_shape(48, truncated=True), params, factors)
    assert f"[48,{few.vocab_size}]" in traced.lower().compile().as_text()
