"""One owner of a workdir; the locks are those of real processes."""

import json
import os
import signal
import subprocess
import sys

import pytest

from thinkfirst.core import owner

HOLD = """
import pathlib, sys
from thinkfirst.core import owner
with owner.of(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that owns tmp_path/run."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_whose_it_is(tmp_path, holder):
    whose = rf'another process writes here: {{"pid": {holder.pid}, "host": ".*'
    with pytest.raises(ValueError, match=whose), owner.of(tmp_path / "run"):
        pass


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path, holder):
    (tmp_path / "run" / "config.json").write_text("{}")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    left = json.loads((tmp_path / "run" / owner.FILE_NAME).read_text())
    assert left["pid"] == holder.pid  # a stale name, and no lock
    with owner.of(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / owner.FILE_NAME).read_text())["pid"] == os.getpid()


def test_a_workdir_in_which_nothing_was_begun_is_gone(tmp_path):
    with pytest.raises(ValueError, match="bad input"), owner.of(tmp_path / "run"):
        raise ValueError("bad input")
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with owner.of(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_workdir_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), owner.of(tmp_path / "file" / "run"):
        pass
