"""The named scopes reach the programs that a run compiles, so that its profile can tell where the time went."""

import dataclasses
import functools

import jax
import pytest

from thinkfirst.core import mesh, timeline
from thinkfirst.launch import recipes
from thinkfirst.models import config
from thinkfirst.rl import plan_programs, stages

TINY = dataclasses.replace(config.demo_gemma3(), num_layers=2, pattern=("local", "global"), width=32, ff_width=64)
SFT, GRPO = (stage for stage in recipes.demo_small().stages if isinstance(stage, stages.Sft | stages.Grpo))


@functools.cache
def trained(stage):
    """The stage at work on two devices, as shapes."""
    return plan_programs.trained(TINY, mesh.make(mesh.MeshConfig(), jax.devices()[:2]), stage)


def rollout():
    subject = trained(GRPO)
    return plan_programs.rollout(subject, plan_programs.engine_shape(GRPO, subject, prompt=52, lanes=64))


PROGRAMS = {
    "rollout": (
        rollout,
        {
            ("rollout",),
            ("rollout", "prefill", "flash_attention"),
            ("rollout", "decode"),
            ("rollout", "decode", "decode_attention"),
            ("rollout", "sample"),
        },
    ),
    "GRPO step": (
        lambda: plan_programs.step(GRPO, trained(GRPO), prompt=52, remat="none"),
        {
            ("update",),
            ("update", "flash_attention"),
            ("update", "token_logprob"),
            ("update", "backward"),
            ("update", "backward", "flash_attention"),
            ("update", "backward", "token_logprob"),
            ("update", "score", "flash_attention"),
            ("update", "score", "token_logprob"),
        },
    ),
    "score": (
        lambda: plan_programs.scoring(GRPO, trained(GRPO), rows=2, prompt=52),
        {("score",), ("score", "flash_attention"), ("score", "token_logprob")},
    ),
    "SFT step": (
        lambda: plan_programs.imitation(SFT, trained(SFT), remat="none"),
        {("update",), ("update", "flash_attention"), ("update", "backward", "token_logprob")},
    ),
}


@pytest.fixture
def compiled_anew():
    """Programs out of the cache have the scopes of whoever put them there."""
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)  # noqa: FBT003
    yield
    jax.config.update("jax_compilation_cache_include_metadata_in_key", False)  # noqa: FBT003


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS)
def test_operations_are_in_the_scopes_of_what_they_are_for(name, compiled_anew):
    make, expected = PROGRAMS[name]
    found = set(timeline.paths_in(make().lower().compile().as_text()).values()) - {None}
    assert expected <= found, sorted(found)
