"""thinkfirst-pod on this machine: two processes for two workers, launched by the steps and the script that a pod gets.

The second launch has new workers, as after a preemption: it goes on from the workdir's URL.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

SMALL = ("data.held_out=4", "stages.evaluate_base.samples=1", "stages.evaluate_base.max_new_tokens=8")


def launch(folder, workdir, *flags):
    """What was said by a launch that takes one step of SFT."""
    pod = [sys.executable, "-m", "thinkfirst.launch.pod", "--target=local", "--name=try", "--accelerator=cpu-2", *flags]
    train = ["--recipe=demo_small", *(f"--set={pair}" for pair in SMALL), f"--workdir={workdir}", "--max_steps=1"]
    command = [*pod, "--", *train, "--heartbeat_seconds=7200"]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_processes_are_launched_and_launched_again(tmp_path):
    url = f"file://{tmp_path}/bucket/run"
    said = launch(tmp_path, url)
    assert said.count("exit status 0") == 2
    assert "recipe demo_small" in said and "stopped as asked; the same command goes on from here" in said
    kept = tmp_path / "runs" / "pods" / "try"
    assert not (kept / "hosts").exists(), "the workers are deleted"
    (row,) = map(json.loads, (kept / "run" / "metrics.jsonl").read_text().splitlines())
    assert row["step"] == 1 and row["stage"] == "sft" and row["loss"] > 0
    said = launch(tmp_path, url)
    assert "sft: resumes from step 1" in said and said.count("exit status 0") == 2
    assert "resumes" not in (kept / "log-1.txt").read_text(), "the first process alone speaks for all"
    rows = [json.loads(line) for line in (kept / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and rows[1]["loss"] != rows[0]["loss"]
    assert {path.name for path in (kept / "run" / "checkpoints" / "sft").iterdir()} == {"1", "2"}

