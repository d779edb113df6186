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


def reference(workdir: pathlib.Path, data: pathlib.Path) -> pathlib.Path:
    """The run nobody kills, with a save of every step."""
    status, said = run(workdir, data, ("none", 1, "SIGKILL"), "--set=keep.every=1", "--set=stages.grpo.save_every=1")
    assert status == 0, said[-4000:]
    return workdir


def killed(workdir: pathlib.Path, data: pathlib.Path, kill: Kill, straight: pathlib.Path) -> list[str]:
    """What is wrong after a kill: another exit status, a save or a logged row that the reference does not have."""
    status, said = run(workdir, data, kill)
    if status != (-signal.SIGKILL if kill[2] == "SIGKILL" else 143):
        return [f"exit status {status}: {said[-300:]!r}"]
    found = []
    for stage in LAST_STEPS:
        for path in (workdir / "checkpoints" / stage).glob("*"):
            step = path.name
            if step.isdigit() and not same(saved(workdir, stage, step), saved(straight, stage, step)):
                found.append(f"{stage} {step}")
    mine, theirs = (rows(place) for place in (workdir, straight))
    return found + ([] if mine == theirs[: len(mine)] else ["metrics.jsonl"])


def rows(workdir: pathlib.Path) -> list[dict]:
    """Whole rows of metrics.jsonl without what clocks say."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in row.items() if not CLOCKS.fullmatch(name)} for row in whole]


def saved(workdir: pathlib.Path, stage: str, step: int | str) -> list[np.ndarray]:
    """Adapter and optimiser after a step of a stage."""
    folder = workdir / "checkpoints" / stage / str(step) / "arrays"
    return jax.tree.leaves(ocp.StandardCheckpointer().restore(folder.absolute()))


def same(mine: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    """Bit for bit."""
    pairs = zip(mine, theirs, strict=True)
    return all(left.dtype == right.dtype and left.tobytes() == right.tobytes() for left, right in pairs)


def differences(workdir: pathlib.Path, straight: pathlib.Path) -> list[str]:
    """What is not the same, bit for bit, when both have ended."""
    found = []
    if rows(workdir) != rows(straight):
        found.append("metrics.jsonl")
    if (workdir / "completions.jsonl").read_bytes() != (straight / "completions.jsonl").read_bytes():
        found.append("completions.jsonl")
    for stage, last in LAST_STEPS.items():
        if not same(saved(workdir, stage, last), saved(straight, stage, last)):
            found.append(f"adapter or moments of {stage}")
    results = [json.loads((place / "final_results.json").read_text()) for place in (workdir, straight)]
    if results[0]["evaluations"] != results[1]["evaluations"]:
        found.append("evaluations")
    return found
