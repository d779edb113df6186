"""Folders stand for buckets: file:// as a disk, memory:// as a store of objects that has no folders."""

import json
import pathlib
import sys
import types
import uuid

import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.core import checkpoint, manifest, metrics, mirror

STATE = {"a": jnp.arange(6.0).reshape(2, 3)}


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    return f"file://{tmp_path}/bucket/run" if request.param == "file" else f"memory://{uuid.uuid4().hex}/run"


class Machine:
    """A machine with a disk of its own that trains one stage; `upto` starts or goes on with the run."""

    def __init__(self, folder, url, last=2):
        self.workdir = folder
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.mirror = mirror.Mirror(url, folder)
        self.mirror.fetch()
        (folder / "config.json").write_text("{}")
        keep = checkpoint.Keep(last=last, best=0)
        self.saved = checkpoint.Checkpoints(folder / "checkpoints" / "sft", keep=keep, written=self.mirror.push)

    def upto(self, stop):
        found = self.saved.newest(STATE)
        done = found[0] if found else 0
        metrics._truncate_after(self.workdir / "metrics.jsonl", done)
        for step in range(done + 1, stop + 1):
            with open(self.workdir / "metrics.jsonl", "a") as log:
                log.write(json.dumps({"step": step}) + "\n")
            self.saved.save(step, {"a": STATE["a"] + step}, {"seconds": 0.0})
            self.saved.wait(last=True)
        return self

    def whole_steps(self):
        """Steps on disk, all of them as they were written, with their logged rows."""
        log = self.workdir / "metrics.jsonl"
        rows = [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.is_file() else []
        for step in self.saved.steps():
            manifest.verify(self.workdir / "checkpoints" / "sft" / str(step), step)
            assert rows[:step] == [*range(1, step + 1)]
        return self.saved.steps()

    def steps(self):
        """The same, with what the arrays hold."""
        for step in self.saved.steps():
            state, _ = self.saved.restore(step, STATE)
            np.testing.assert_array_equal(state["a"], STATE["a"] + step)
        return self.whole_steps()


def listed(url):
    return mirror._Store(url).names()


def test_a_new_machine_goes_on_from_the_last_save(url, tmp_path):
    Machine(tmp_path / "one", url).upto(3)
    assert {name.split("/")[2] for name in listed(url) if name.startswith("checkpoints")} == {"2", "3"}
    two = Machine(tmp_path / "two", url)
    assert two.steps() == [2, 3]
    assert two.upto(5).steps() == [4, 5]
    assert Machine(tmp_path / "three", url).steps() == [4, 5]


@pytest.mark.parametrize("last", [1, 2])
def test_killed_between_any_two_of_its_copies_a_run_goes_on_from_a_whole_save(url, tmp_path, monkeypatch, last):
    """What three saves send and remove, one by one; a new machine begins after each, and now and then trains on."""
    done = []
    for name in ("put", "write", "remove"):
        whole = getattr(mirror._Store, name)

        def noted(self, *arguments, name=name, whole=whole):
            content = arguments[0].read_bytes() if name == "put" else arguments[-1] if name == "write" else None
            done.append((arguments[-1] if name == "put" else arguments[0], content))
            whole(self, *arguments)

        monkeypatch.setattr(mirror._Store, name, noted)
    Machine(tmp_path / "one", f"{url}/whole", last=last).upto(3)
    monkeypatch.undo()
    assert len(done) > 30 and {content is None for _, content in done} == {True, False}
    there, seen = mirror._Store(f"{url}/run"), set()
    for count, (name, content) in enumerate(done):
        there.remove(name) if content is None else there.write(name, content)
        two = Machine(tmp_path / str(count), f"{url}/run", last=last)
        whole = two.whole_steps()
        seen.add(tuple(whole))
        assert whole or seen == {()}, "there was a whole save, and there is none now"
        if count % 9 == 0:
            place = f"{url}/{count}"
            for copied, what in ((name, there.read(name)) for name in there.names()):
                mirror._Store(place).write(copied, what)
            Machine(tmp_path / f"{count} on", place, last=last).upto(4)
            assert Machine(tmp_path / f"{count} further", place, last=last).steps()[-1] == 4
    assert seen >= {(), (1,), (2, 3)[-last:]}


def test_progress_is_what_it_was_before_the_checkpoints_were_looked_for(url, tmp_path, monkeypatch):
    """The stage ends while its last checkpoint is sent: progress.json does not speak of it yet in the bucket."""
    machine = Machine(tmp_path / "one", url).upto(1)
    (machine.workdir / "progress.json").write_text('{"stages": []}')
    whole = mirror._Store.put

    def ends(self, *arguments):
        (machine.workdir / "progress.json").write_text('{"stages": ["sft"]}')
        whole(self, *arguments)

    monkeypatch.setattr(mirror._Store, "put", ends)
    machine.upto(2)
    there = mirror._Store(url)
    assert json.loads(there.read("progress.json")) == {"stages": []}
    machine.mirror.push()
    assert json.loads(there.read("progress.json")) == {"stages": ["sft"]}


def test_a_checkpoint_saved_again_replaces_the_damaged_one(url, tmp_path):
    Machine(tmp_path / "one", url).upto(2)
    there = mirror._Store(url)
    (name,) = (name for name in listed(url) if name.startswith("checkpoints/sft/2") and name.endswith("meta.json"))
    there.write(name, b"{}")
    there.write(name.replace("meta", "left_over"), b"{}")
    two = Machine(tmp_path / "two", url)
    assert two.upto(2).steps() == [1, 2]  # the damaged one was put aside, and step 2 done again
    assert Machine(tmp_path / "three", url).steps() == [1, 2]


def test_the_bucket_is_the_run_and_an_older_copy_gives_way(url, tmp_path):
    Machine(tmp_path / "one", url).upto(1)
    Machine(tmp_path / "two", url).upto(4)
    (tmp_path / "one" / ".owner").write_text("held")
    (tmp_path / "one" / "checkpoints" / "sft" / "1.damaged").mkdir()
    again = Machine(tmp_path / "one", url)
    assert again.steps() == [3, 4] and (tmp_path / "one" / ".owner").read_text() == "held"
    assert not (tmp_path / "one" / "checkpoints" / "sft" / "1.damaged").exists()


def test_a_local_run_is_kept_where_the_url_holds_none(url, tmp_path):
    one = Machine(tmp_path / "one", f"{url}_gone").upto(2)
    assert Machine(one.workdir, url).steps() == [1, 2]


def test_one_run_at_a_time_writes(url, tmp_path):
    one = Machine(tmp_path / "one", url).upto(1)
    two = Machine(tmp_path / "two", url).upto(2)
    with pytest.raises(OSError, match=r"2: the save failed: .*another run has taken over: .*host"):
        one.upto(2)
    assert two.upto(3).steps() == [2, 3] and Machine(tmp_path / "three", url).steps() == [2, 3]


def test_what_is_no_run_is_not_fetched_nor_written_over(url, tmp_path):
    mirror._Store(url).write("thesis.tex", b"")
    with pytest.raises(ValueError, match=r"there are files, such as thesis.tex, but no config.json of a run"):
        Machine(tmp_path / "one", url)


def test_other_files_follow_and_hidden_ones_do_not(url, tmp_path):
    machine = Machine(tmp_path / "one", url)
    names = ["traces/reject.jsonl", "tensorboard/events", "report.html", ".report.html.9.part", "final_results.json"]
    for name in names:
        (machine.workdir / name).parent.mkdir(exist_ok=True)
        (machine.workdir / name).write_text(name)
    machine.mirror.push()
    assert mirror._Store(url).read("traces/reject.jsonl") == b"traces/reject.jsonl"
    wanted = ["OWNER.json", "config.json", "final_results.json", "report.html", "tensorboard/events"]
    assert listed(url) == [*wanted, "traces/reject.jsonl"]
    (machine.workdir / "report.html").write_text("more")
    machine.mirror.push()
    assert mirror._Store(url).read("report.html") == b"more"


def test_a_model_is_brought(url, tmp_path):
    for name in ("gemma/config.json", "gemma/model.safetensors", "other"):
        mirror._Store(url).write(name, name.encode())
    assert mirror.bring(f"{url}/gemma", tmp_path / "here") == 2
    assert (tmp_path / "here" / "model.safetensors").read_bytes() == b"gemma/model.safetensors"
    with pytest.raises(ValueError, match="nowhere: there is nothing"):
        mirror.bring(f"{url}/nowhere", tmp_path / "there")


def test_a_url_has_a_place_here():
    assert mirror.is_url("gs://bucket/run") and not mirror.is_url("runs/demo")
    assert mirror.local_copy("gs://bucket/a/run/") == pathlib.Path("runs/gs/bucket/a/run")
    for wrong in ("gs://", "://bucket", "gs://bucket/../run"):
        with pytest.raises(ValueError, match="not the URL of a folder"):
            mirror.local_copy(wrong)


def test_what_a_store_raises_is_an_error_of_the_system_that_names_the_url(url, tmp_path, monkeypatch):
    """gcsfs has errors that are no OSError: they count as failed saves too."""
    module = types.ModuleType("gcsfs.retry")
    module.HttpError = type("HttpError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "gcsfs.retry", module)
    machine = Machine(tmp_path / "one", url).upto(1)

    def busy(*_):
        raise module.HttpError("429, slow down")

    monkeypatch.setattr(mirror._Store, "write", busy)
    with pytest.raises(OSError, match=r"2: the save failed: .*run: 429, slow down"):
        machine.upto(2)


def test_a_store_that_is_not_installed_names_the_extra(tmp_path):
    pytest.importorskip("fsspec")
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"gs://bucket/run: .*pip install 'thinkfirst\[gcs\]'"):
            mirror.Mirror("gs://bucket/run", tmp_path).fetch()
    else:
        pytest.skip("left out: what is said without gcsfs, which is installed")
