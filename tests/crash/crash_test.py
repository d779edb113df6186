"""The real program, killed twice in the life of one run: `make crash` does the same with every point."""

import numpy as np
import pytest
from crash import harness

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


def test_what_is_killed_comes_to_the_same(tmp_path):
    """SIGTERM in the rewards of GRPO's first step, SIGKILL between the iterations of the second."""
    data = harness.write_data(tmp_path / "data")
    straight, workdir = harness.reference(tmp_path / "straight", data), tmp_path / "run"
    for kill in (("mid_reward", 3, "SIGTERM"), ("between_iterations", 4, "SIGKILL")):
        assert harness.killed(workdir, data, kill, straight) == [], kill
    status, said = harness.run(workdir, data)
    assert status == 0, said
    assert harness.differences(workdir, straight) == []
    assert len(harness.rows(workdir)) == 9 and any(row["skipped"] == 0 for row in harness.rows(workdir)[4:])


def test_the_comparison_sees_one_bit_and_one_row(tmp_path):
    straight = tmp_path / "straight"
    straight.mkdir()
    (straight / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "step_time": 3}\n{"step": 2, "lo')
    assert harness.rows(straight) == [{"step": 1, "loss": 0.5}]
    left, right = np.float32([1, 2]), np.float32([1, 2])
    assert harness.same([left], [right])
    right.view(np.uint32)[1] ^= 1
    assert not harness.same([left], [right])
