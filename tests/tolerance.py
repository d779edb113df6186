"""The one tolerance table, by dtype.  A test that needs more says so with `slack`, and why in a comment beside it."""

import numpy as np
from numpy.typing import ArrayLike

TOLERANCE: dict[str, dict[str, float]] = {
    "float64": {"rtol": 1e-12, "atol": 1e-12},
    "float32": {"rtol": 2e-5, "atol": 2e-5},
    "float16": {"rtol": 4e-3, "atol": 4e-3},
    "bfloat16": {"rtol": 2e-2, "atol": 2e-2},
}
LOGPROB = 1e-4  # nats, whatever the dtype: logits are float32
# Norm of a gradient's error over its norm, by the dtype of what was multiplied: as summed in float32, and as handed
# back in that dtype, which alone costs 1.7e-3 in bfloat16.
GRADIENT: dict[str, dict[str, float]] = {
    "float32": {"summed": 1e-5, "handed back": 1e-5},
    "bfloat16": {"summed": 1e-3, "handed back": 2.5e-3},
}


def assert_close(actual: ArrayLike, expected: ArrayLike, *, slack: float = 1.0) -> None:
    """Equal within the table's row for the dtype of `actual`; integers and booleans exactly; NaN equals nothing."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shapes differ: {actual.shape} and {expected.shape}"
    bound = TOLERANCE.get(actual.dtype.name)
    if bound is None:
        np.testing.assert_array_equal(actual, expected)
    else:
        np.testing.assert_allclose(
            actual.astype(np.float64),
            expected.astype(np.float64),
            rtol=bound["rtol"] * slack,
            atol=bound["atol"] * slack,
            equal_nan=False,
        )


def assert_near(actual: ArrayLike, expected: ArrayLike, *, part: float) -> None:
    """The largest difference is at most `part` of the largest expected value: for sums whose small values cancel."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shapes differ: {actual.shape} and {expected.shape}"
    found, largest = np.abs(actual - expected).max(), np.abs(expected).max()
    assert found <= part * largest, f"off by {found:.3g}, {found / largest:.2g} of the largest value {largest:.3g}"


def assert_logprob(actual: ArrayLike, expected: ArrayLike) -> None:
    """Log-probs or entropies, equal within the table."""
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=LOGPROB, equal_nan=False)


def assert_gradient(actual: ArrayLike, expected: ArrayLike, *, summed_in: str = "") -> None:
    """Equal within the table's row for the dtype of `actual`, or as the float32 sum of products in `summed_in`."""
    actual, expected = np.asarray(actual), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shapes differ: {actual.shape} and {expected.shape}"
    bound = GRADIENT[summed_in]["summed"] if summed_in else GRADIENT[actual.dtype.name]["handed back"]
    error = np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected)
    assert error <= bound, f"off by {error:.2g} of the norm, more than {bound:.2g}"
