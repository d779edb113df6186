"""What else may happen to several hosts, and to a run that changes its mesh: part of `make crash`, for its length."""

import signal

import pytest
from system import hosts_runs

pytestmark = pytest.mark.timeout(1800)


def test_a_run_goes_on_on_another_mesh(tmp_path):
    """Three of its five steps on data 8, one on data 2 x fsdp 4, the last on one device."""
    for devices, *flags in (
        (8, "--max_steps=3"),
        (8, "--max_steps=1", "--set=mesh.data=2", "--set=mesh.fsdp=4"),
        (1, "--set=mesh.data=1"),
    ):
        process = hosts_runs.start(devices, "none", tmp_path / "run", *flags)
        said = process.communicate(timeout=1500)[0]
        assert process.returncode == 0, said
    assert "goes on with another mesh.fsdp: 4 -> 1" in said and "resumes from step 4" in said
    hosts_runs.compare(tmp_path / "run", hosts_runs.alone(tmp_path / "alone"), within=1e-5)


def test_a_host_that_is_killed_ends_the_other_within_the_heartbeat(tmp_path):
    statuses, said = hosts_runs.two(tmp_path / "run", "SIGKILL:1", heartbeat=100)
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] not in (0, 1, 2, 143), said[0]  # what a restart is for
    assert (tmp_path / "run" / "checkpoints" / "sft" / "2" / "MANIFEST.json").is_file()


def test_rewards_that_fail_on_one_host_end_both_with_a_reason(tmp_path):
    statuses, said = hosts_runs.two(tmp_path / "run", "reward:1")
    assert statuses == [2, 2], said
    assert "error: this judge is out of order" in said[1]
    assert "error: the rewards of step 2 failed on host 1" in said[0]
