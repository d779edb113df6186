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
from thinkfirst.models import config
from thinkfirst.rl import batch, learner

PROMPT, NEW = 256, 256
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
    whole = make()
    sizes = dataclasses.replace(whole, num_layers=len(whole.pattern))
    model, params, factors = slices.policy(sizes, devices)
    transform = optax.adam(1e-3)
    state = slices.on(jax.eval_shape(transform.init, factors), sharding.replicated(devices))
    step = learner.make_step(model, transform, learner.LossConfig(), micro_batches=1, remat=True)
    temperature = slices.on(jax.ShapeDtypeStruct((), jnp.float32), sharding.replicated(devices))
    compiled = step.lower(factors, state, params, experience(16, devices), temperature).compile()
    text = compiled.as_text()
    print(len(kernels_of(text)), compiled.memory_analysis().temp_size_in_bytes / 2**20, largest(text) / 1e6)
    assert kernels_of(text)
    assert largest(text) <= sizes.vocab_size * sizes.width
