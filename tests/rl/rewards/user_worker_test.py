"""What a reward of the user's own may give back, and what it may not."""

import math

import numpy as np
import pytest

from thinkfirst.rl.rewards import user_worker


@pytest.mark.parametrize(
    "found, values",
    [
        ([1, 0.5, None], [1.0, 0.5, None]),
        ((True, False, -3), [1.0, 0.0, -3.0]),
        (np.array([1, 2, 3]), [1.0, 2.0, 3.0]),
        (np.array([1, 2, 3], np.float16), [1.0, 2.0, 3.0]),
        ((value for value in (1, 2, 3)), [1.0, 2.0, 3.0]),
        ([None, None, None], [None, None, None]),
    ],
)
def test_numbers_and_none(found, values):
    assert user_worker.checked(found, 3) == values


@pytest.mark.parametrize(
    "found, message",
    [
        ([0.0, math.nan, 1.0], "completion 1: it gave nan, which is not finite"),
        ([0.0, 1.0, -math.inf], "completion 2: it gave -inf, which is not finite"),
        (np.array([0.0, np.nan, 1.0], np.float32), "completion 1: it gave nan"),
        ([1.0, "0.5", 1.0], "completion 1: it gave '0.5', a str, not a number or None"),
        ([1.0, 1j, 1.0], "completion 1: it gave 1j, a complex, not a number or None"),
        ([[1.0], [1.0], [1.0]], r"completion 0: it gave \[1.0\], a list, not a number or None"),
        (np.ones((3, 1)), "completion 0: it gave .*, a ndarray, not a number or None"),
        ("abc", "it gave 'abc', not a list of 3 numbers or None"),
        (b"abc", "it gave b'abc', not a list of 3"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, "it gave {0: 1.0.*, not a list of 3"),
        (None, "it gave None, not a list of 3 numbers or None"),
        (1.0, "it gave 1.0, not a list of 3 numbers or None"),
        ([], "it gave 0 values for 3 completions"),
        ([1.0] * 4, "it gave 4 values for 3 completions"),
        ("x" * 1000, "it gave 'x{79}[.]{3}, not a list"),
    ],
)
def test_anything_else_is_named(found, message):
    with pytest.raises(ValueError, match=message):
        user_worker.checked(found, 3)
