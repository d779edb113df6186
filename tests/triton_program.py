"""Runs a program of tests/triton_child/ in a process of its own and reads the JSON lines it prints."""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

SHARED_MEMORY = 227 * 1024  # bytes that one block may use on sm_90


@functools.cache
def run(program: str, part: str) -> list[dict[str, Any]]:
    if importlib.util.find_spec("triton") is None:
        pytest.skip(f"left out: {part} of the Triton kernels in {program}; make .venv/.triton-ok (Linux only)")
    path = pathlib.Path(__file__).parent / "triton_child" / program
    cache = path.parents[2] / ".build/triton"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "TRITON_CACHE_DIR": str(cache)}
    found = subprocess.run([sys.executable, path, part], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-3000:]
    return [json.loads(line) for line in found.stdout.splitlines()]


def check_resources(row: dict[str, Any]) -> None:
    """Asserts that a kernel compiled for sm_90 fits, with every value in a register."""
    assert row["stack"] == 0, f"registers are spilled: {row}"
    assert row["shared"] <= SHARED_MEMORY, row
