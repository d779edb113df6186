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


def test_samples_that_did_not_stop_lose_their_tokens():
    of = lambda count: np.ones(count, np.float32)  # noqa: E731
    found = [batch.Sample([1, 2], np.ones(3, np.int32), of(3), of(3), advantage) for advantage in (1.5, -1.5)]
    kept, cut = overlong.filtered(found, np.array([True, False]))
    assert kept is found[0]
    assert cut.prompt == [1, 2] and len(cut.completion) == len(cut.logp) == len(cut.floor) == 0
    assert len(found[1].completion) == 3
