import json

import jax
import jax.numpy as jnp
import pytest

from thinkfirst.rl import plan_cache

SHAPE = jax.ShapeDtypeStruct((64, 64), jnp.float32)


@pytest.fixture(autouse=True)
def count(monkeypatch):
    """How often the compiler was asked."""
    asked = []

    def ask(lowered):
        asked.append(lowered)
        return plan_cache.Compiled(made=True, argument_bytes=1, peak_bytes=2, bytes_accessed=len(asked))

    monkeypatch.setattr(plan_cache, "_asked", ask)
    return asked


def lowered(factor):
    return jax.jit(lambda x: x * factor).lower(SHAPE)


def test_the_compiler_is_asked_once_for_a_program_and_a_chip(tmp_path, count):
    first = plan_cache.compiled(lowered(2.0), "v5e", tmp_path)
    assert plan_cache.compiled(lowered(2.0), "v5e", tmp_path) == first
    assert len(count) == 1
    plan_cache.compiled(lowered(3.0), "v5e", tmp_path)
    plan_cache.compiled(lowered(2.0), "v6e", tmp_path)
    assert len(count) == 3
    assert {json.loads(path.read_text())["bytes_accessed"] for path in tmp_path.iterdir()} == {1, 2, 3}


def test_another_effort_is_another_program(tmp_path, count):
    plan_cache.compiled(lowered(2.0), "v5e", tmp_path)
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    try:
        plan_cache.compiled(lowered(2.0), "v5e", tmp_path)
    finally:
        jax.config.update("jax_exec_time_optimization_effort", 0.0)
    assert len(count) == 2


def test_without_a_folder_nothing_is_kept(count):
    for _ in range(2):
        plan_cache.compiled(lowered(2.0), "v5e", None)
    assert len(count) == 2
