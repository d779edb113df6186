"""What the GRPO step of Gemma 3 1B takes, at the rows and the rank that the whole model is measured with."""

import dataclasses
import math

import jax
import pytest

import slices
from thinkfirst.kernels.cost import chips, flops
from thinkfirst.launch import plan as plan_program
from thinkfirst.launch import show_work
from thinkfirst.models import config
from thinkfirst.rl import plan, plan_programs

LAYERS = 2
PROMPT = 256


@pytest.fixture
def quick_compiler():
    """The compiler as `thinkfirst-plan` asks it."""
    jax.config.update("jax_exec_time_optimization_effort", plan_program.EFFORT)
    yield
    jax.config.update("jax_exec_time_optimization_effort", 0.0)


def trained(*, num_layers, base_dtype="stored"):
    """(stage, model and what it trains): rows of 256 + 768 tokens, rank 64 on all projections."""
    (stage,) = [stage for stage in show_work.show_work_gemma3_1b().stages if stage.name == "grpo"]
    stage = dataclasses.replace(stage, lora=dataclasses.replace(stage.lora, rank=64))
    shape = dataclasses.replace(config.gemma3_1b(), num_layers=num_layers, base_dtype=base_dtype)
    return stage, plan_programs.trained(shape, slices.layout("v5e:2x4"), stage)


@pytest.mark.long
@pytest.mark.timeout(900)  # the TPU compiler takes its time
def test_a_row_takes_little_memory(quick_compiler):
    stage, subject = trained(num_layers=LAYERS)
    traced = plan_programs.update(stage, subject, rows=32, prompt=PROMPT, remat="full")
    found = plan.compiled(traced, chips.ROOFS["v5e"], counted=0)
    assert found.fits
    stream = 1024 * subject.model.config.width * 2
    # what is left after each layer's input is what the gradient of one layer, or of the log-probs, has alive
    assert found.temporary_bytes / 32 - LAYERS * stream < 45e6
    assert found.argument_bytes < 1e9


@pytest.mark.long
def test_at_sixteen_rows_little_is_computed_again():
    stage, subject = trained(num_layers=26)

    def count(remat):
        traced = plan_programs.update(stage, subject, rows=16, prompt=PROMPT, remat=remat)
        return flops.count(traced.jaxpr.jaxpr, window=512)

    assert count("gate") < 1.15 * count("none")


@pytest.mark.long
@pytest.mark.timeout(900)  # the TPU compiler takes its time
@pytest.mark.parametrize(("base_dtype", "bits"), [("int8", 8), ("int4", 4.5)])
def test_a_base_of_integers_takes_its_bits_and_no_copy(quick_compiler, base_dtype, bits):
    """The step of two layers, compiled; the embedding stays in bfloat16."""
    stage, subject = trained(num_layers=LAYERS, base_dtype=base_dtype)
    traced = plan_programs.update(stage, subject, rows=1, prompt=PROMPT, remat="full")
    found = plan.compiled(traced, chips.ROOFS["v5e"], counted=0)
    weights = sum(math.prod(shape) for _, shape in subject.model.adapted().values())
    few = 2 * 10 * LAYERS * subject.model.config.ff_width * 4  # scales of channels, norms
    rest = 2 * math.prod(subject.params["embedding"].shape) + 3 * plan_programs.on_device(subject.adapter)
    rest += plan_programs.on_device(plan_programs.experience(stage, subject, subject.shards, PROMPT))
    print(f"{base_dtype}: {found.argument_bytes - rest} bytes for {weights} weights, {found.temporary_bytes} temporary")
    assert abs(found.argument_bytes - rest - weights * bits / 8) < few + 2e6  # arrays are padded to whole tiles
