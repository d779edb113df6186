import jax.numpy as jnp
import pytest

import tolerance
from thinkfirst.rl import optimizer


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]), ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.75])],
)
def test_warm_up_then_flat_or_cosine(decay, expected):
    """Ten steps, four of them warm-up; the cosine's second step is at 1/6 of its way: (1 + cos(pi/6)) / 2."""
    config = optimizer.OptimizerConfig(learning_rate=1.0, warmup=0.4, decay=decay)
    rate = optimizer.schedule(config, 10)
    found = [float(rate(step)) for step in range(6)]
    if decay == "cosine":
        expected = [*expected[:5], (1 + 0.8660254) / 2]
    tolerance.assert_close(jnp.array(found), jnp.array(expected))


def test_one_step_of_adam_moves_by_the_learning_rate():
    config = optimizer.OptimizerConfig(learning_rate=0.1, warmup=0.0)
    transform = optimizer.make(config, 5)
    start = {"w": jnp.zeros(2)}
    moved, _ = optimizer.apply(transform, {"w": jnp.array([3.0, -0.2])}, transform.init(start), start)
    tolerance.assert_close(moved["w"], jnp.array([-0.1, 0.1]), slack=10)  # epsilon of Adam
