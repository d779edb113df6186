"""Kills the real program at named points and compares what it comes to with a run that nobody killed."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

PROGRAM = pathlib.Path(__file__).with_name("kill_at.py")
CLOCKS = re.compile(r"step_time|tokens_per_second|rollout/tokens_per_second|rollout/compiles|(rollout/)?time/.*")
LAST_STEPS = {"sft": 4, "grpo": 5}
Kill = tuple[str, int, str]  # point, which time it is reached, signal


def write_data(folder: pathlib.Path) -> pathlib.Path:
    """Twelve sums to learn from, six easy and six medium, and three held out."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = [(left, left + 2, 2 * left + 2) for left in range(3, 18)]
    rows = [
        {
            "id": f"sum {left}",
            "question": f"What is {left} + {right}?",
            "answer": str(total),
            "difficulty": "medium" if left % 2 else "easy",
            "completion": f"<reasoning>Step 1: {left}+{right}={total}.</reasoning><answer>{total}</answer>",
        }
        for left, right, total in sums
    ]
    for name, part in (("train", rows[:12]), ("eval", rows[12:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def run(workdir: pathlib.Path, data: pathlib.Path, kill: Kill = ("none", 1, "SIGKILL"), *flags: str) -> tuple[int, str]:
    """(exit status, what was said) of one start of the program."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    point, nth, name = kill
    command = [sys.executable, str(PROGRAM), point, str(nth), name, str(data), f"--workdir={workdir}", *flags]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    return found.returncode, found.stdout + found.stderr


def killed_and_resumed(workdir: pathlib.Path, data: pathlib.Path, kills: list[Kill]) -> list[int]:
    """Exit statuses of the killed starts; the last start, which must end well, is nobody's victim."""
    statuses = []
    for kill in kills:
        status, said = run(workdir, data, kill)
        expected = (-signal.SIGKILL,) if kill[2] == "SIGKILL" else (143, 0)
        assert status in expected, f"{kill}: exit status {status}\n{said[-4000:]}"
        statuses.append(status)
    status, said = run(workdir, data)
    assert status == 0, f"after {kills}: exit status {status}\n{said[-4000:]}"
    return statuses


def rows(workdir: pathlib.Path) -> list[dict]:
    """Rows of metrics.jsonl without what clocks say."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if not CLOCKS.fullmatch(name)} for row in lines]


def arrays(workdir: pathlib.Path, stage: str) -> list[np.ndarray]:
    """Adapter and optimiser at the end of a stage."""
    folder = workdir / "checkpoints" / stage / str(LAST_STEPS[stage]) / "arrays"
    return jax.tree.leaves(ocp.StandardCheckpointer().restore(folder.absolute()))


def differences(workdir: pathlib.Path, straight: pathlib.Path) -> list[str]:
    """What is not the same, bit for bit."""
    found = []
    if rows(workdir) != rows(straight):
        found.append("metrics.jsonl")
    if (workdir / "completions.jsonl").read_bytes() != (straight / "completions.jsonl").read_bytes():
        found.append("completions.jsonl")
    for stage in LAST_STEPS:
        pairs = zip(arrays(workdir, stage), arrays(straight, stage), strict=True)
        if not all(np.array_equal(mine, theirs) and mine.dtype == theirs.dtype for mine, theirs in pairs):
            found.append(f"adapter or moments of {stage}")
    results = [json.loads((place / "final_results.json").read_text()) for place in (workdir, straight)]
    if results[0]["evaluations"] != results[1]["evaluations"]:
        found.append("evaluations")
    return found
