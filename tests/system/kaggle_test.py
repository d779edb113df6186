"""The cells of docs/kaggle.ipynb, run in order on tiny recipes and a folder that stands for Kaggle's disk."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

NOTEBOOK = pathlib.Path(__file__).resolve().parents[2] / "docs" / "kaggle.ipynb"
SMALL = {
    "show_work": (
        "show_work_tiny --set data.held_out=4 --set stages.evaluate_base.samples=1 "
        "--set stages.evaluate_base.max_new_tokens=8"
    ),
    "think_first": (
        "think_first_tiny --set data.held_out=6 --set stages.evaluate_base.samples=1 "
        "--set stages.evaluate_base.max_new_tokens=8 --set stages.grpo.prompts=2 --set stages.grpo.max_new_tokens=16"
    ),
}


def cells():
    """Sources of the notebook's cells of code."""
    if not NOTEBOOK.is_file():
        pytest.skip(f"left out: {NOTEBOOK} is not there")
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def as_python(source):
    """A cell as Python: `!line` runs the line in a shell, the names in its braces filled in."""
    return re.sub(r"^( *)!(.*)$", lambda line: f"{line[1]}_exit_code = _shell(f{line[2]!r})", source, flags=re.M)


@pytest.fixture
def session(tmp_path, monkeypatch):
    """Runs all cells as a session does that is called `name`; returns what was said."""
    monkeypatch.setenv("KAGGLE_INPUT", str(tmp_path / "input"))
    monkeypatch.setenv("TRAIN_FLAGS", "--max_steps=1 --heartbeat_seconds=7200")
    monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the recipe's own two devices

    def run(name, pipeline):
        monkeypatch.setenv("KAGGLE_WORKING", str(tmp_path / name))
        monkeypatch.setenv("PIPELINE", pipeline)
        monkeypatch.setenv("RECIPE", SMALL[pipeline])
        said = []

        def shell(line):
            assert "{" not in line and "--max_seconds=30600" in line
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=os.environ, check=False)
            said.append(done.stdout + done.stderr)
            return done.returncode

        kernel = {"_shell": shell, "print": lambda *words: said.append(" ".join(map(str, words)))}
        for source in cells():
            try:
                exec(compile(as_python(source), str(NOTEBOOK), "exec"), kernel)
            except AssertionError as error:
                raise AssertionError("\n".join([*said, source])) from error
        return "\n".join(said)

    return run


def test_a_session_goes_on_from_the_output_of_the_one_before(session, tmp_path):
    said = session("first", "show_work")
    assert "stopped as asked" in said and "1 steps; the last is of sft" in said and "attach this" in said
    shutil.copytree(tmp_path / "first", tmp_path / "input" / "thinkfirst-notebook")
    shutil.copytree(tmp_path / "first", tmp_path / "input" / "older")
    shutil.rmtree(tmp_path / "input" / "older" / "show_work" / "checkpoints")
    said = session("second", "show_work")
    assert f"goes on from {tmp_path}/input/thinkfirst-notebook/show_work" in said
    assert "sft: resumes from step 1" in said and "2 steps; the last is of sft" in said


def test_think_first_begins(session):
    assert "1 steps; the last is of grpo" in session("first", "think_first")


def test_without_weights_it_says_what_to_attach(session, monkeypatch, tmp_path):
    monkeypatch.setitem(SMALL, "show_work", "")
    with pytest.raises(AssertionError, match="no weights: attach them"):
        try:
            session("first", "show_work")
        except AssertionError as error:
            raise error.__cause__ from None
    assert not (tmp_path / "first").exists()


def test_outputs_are_not_kept():
    ran = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in ran)
