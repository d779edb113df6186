"""Two processes of four devices are one process of eight, also when one of them is told to end.

What else may happen to several hosts: tests/crash/hosts_long.py.
"""

import pytest
from system import hosts_runs

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


def test_sigterm_to_one_host_stops_both_at_one_step_and_the_rest_equals_one_process(tmp_path):
    statuses, said = hosts_runs.two(tmp_path / "run", "SIGTERM:1")
    assert statuses == [143, 143], said
    assert "told to end; the same command goes on from here" in said[0]
    steps = [path.name for path in (tmp_path / "run" / "checkpoints" / "grpo").iterdir() if path.name.isdigit()]
    assert len(steps) == 1 and int(steps[0]) == len(hosts_runs.rows(tmp_path / "run")) - 2
    statuses, said = hosts_runs.two(tmp_path / "run")
    assert statuses == [0, 0], said
    assert f"grpo: resumes from step {2 + int(steps[0])}" in said[0] and "resumes" not in said[1]
    hosts_runs.compare(tmp_path / "run", hosts_runs.alone(tmp_path / "alone"))
