"""The share of a device's peaks, and which device is known by which name."""

import types

import jax
import jax.numpy as jnp
import pytest

from thinkfirst.kernels import placement
from thinkfirst.kernels.cost import chips
from thinkfirst.launch.benchmarks import roofline

ROOF = chips.Roof("half", 100.0, 10.0, 1)


def test_the_longer_of_the_two_counts():
    assert roofline.fraction(ROOF, num_flops=200.0, num_bytes=5.0, seconds=4.0) == 0.5
    assert roofline.fraction(ROOF, num_flops=200.0, num_bytes=30.0, seconds=4.0) == 0.75
    assert roofline.fraction(None, num_flops=200.0, num_bytes=30.0, seconds=4.0) is None


@pytest.mark.parametrize(
    ("kind", "name"), [("cpu", None), ("TPU v5 lite", "v5e"), ("TPU v6e", "v6e"), ("NVIDIA H200", "H200")]
)
def test_a_device_is_known_by_its_kind(monkeypatch, kind, name):
    monkeypatch.setattr(placement, "device_kind", lambda: kind)
    found = roofline.roof()
    assert (found and found.name) == name


def test_a_program_is_counted_only_where_there_is_a_roof(monkeypatch):
    traced = jax.jit(lambda x: x @ x).trace(jnp.ones((10, 10)))
    program = traced.lower().compile()
    settings = {"window": 0, "devices": 2, "seconds": 5.0}
    assert roofline.of_program(None, None, **settings) is None  # a CPU: nobody looks at it
    monkeypatch.setattr(roofline, "roof", lambda: ROOF)
    monkeypatch.setattr(roofline, "hlo", types.SimpleNamespace(program_bytes=lambda text: 10))
    assert roofline.of_program(traced, program, **settings) == pytest.approx(2 * 10**3 / 2 / 100 / 5)
