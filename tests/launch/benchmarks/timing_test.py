"""Turns and medians of the bench, and what of a time was compilation."""

import math
import time

import jax
import jax.numpy as jnp
import pytest

from thinkfirst.launch.benchmarks import timing


def test_a_gap_that_is_no_number_is_no_small_gap():
    with pytest.raises(ValueError, match="nan"):
        timing.require_small({"loss": math.nan}, 1.0)


def test_sides_take_turns_and_the_first_turn_is_not_counted():
    order = []
    found = timing.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert set(found) == {"a", "b"}


def test_time_under_several_spans_counts_once():
    assert timing.covered([]) == 0
    assert timing.covered([(5.0, 7.0), (0.0, 4.0), (1.0, 2.0), (3.0, 4.5)]) == 6.5
    assert timing.covered([(2.0, 3.0), (0.0, 9.0)]) == 9.0


def test_compilation_is_heard_while_it_is_listened_to():
    program = jax.jit(lambda x: jnp.sin(x) * 3)
    start = time.perf_counter()
    with timing.Compiling() as heard:
        program(jnp.ones(3))
    end = time.perf_counter()
    assert heard.spans and all(start <= begin <= stop <= end for begin, stop in heard.spans)
    known = len(heard.spans)
    program(jnp.ones(5))
    assert len(heard.spans) == known
    with timing.Compiling() as again:
        program(jnp.ones(5))
    assert again.spans == []
