import numpy as np
import pytest

import tolerance
from thinkfirst.rl import batch, overlong


def test_soft_punishment_worked_by_hand():
    """L = 100, C = 20: free up to 80, then 1/20 a token, -1 at and beyond 100."""
    found = overlong.soft_punishment(np.array([1, 80, 81, 90, 100, 120]), max_tokens=100, buffer=20)
    tolerance.assert_close(found, np.float32([0, 0, -0.05, -0.5, -1, -1]))


def test_a_buffer_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="buffer=0 must lie between 1 and max_tokens=5"):
        overlong.soft_punishment(np.array([1]), max_tokens=5, buffer=0)


def test_rows_that_did_not_stop_lose_tokens_and_advantage():
    rows = batch.Experience(
        tokens_BT=np.ones((2, 5), np.int32),
        prompt_length_B=np.array([2, 2]),
        completion_BT=np.ones((2, 3), np.int32),
        completion_length_B=np.array([3, 3]),
        old_logp_BT=np.zeros((2, 3), np.float32),
        floor_BT=np.zeros((2, 3), np.float32),
        advantage_B=np.float32([1.5, -1.5]),
    )
    found = overlong.filtered(rows, np.array([True, False]))
    assert found.completion_length_B.tolist() == [3, 0]
    tolerance.assert_close(found.advantage_B, np.float32([1.5, 0.0]))
    assert rows.completion_length_B.tolist() == [3, 3]
