import concurrent.futures
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.core import checkpoint, manifest

STATE = {"a": jnp.arange(6.0).reshape(2, 3), "count": jnp.int32(4)}


def saved(folder, *steps, **settings):
    """Checkpoints of these steps, all written."""
    written = checkpoint.Checkpoints(folder, keep=checkpoint.Keep(**settings))
    for step in steps:
        written.save(step, {**STATE, "count": jnp.int32(step)}, {"seconds": step / 2})
    written.wait(last=True)
    return written


def test_round_trip_and_keeping_the_newest(tmp_path):
    assert saved(tmp_path / "stage", 1, 2, 3).steps() == [2, 3]
    state, meta = checkpoint.Checkpoints(tmp_path / "stage").restore(3, STATE)
    assert int(state["count"]) == 3
    np.testing.assert_array_equal(state["a"], STATE["a"])
    assert meta == {"seconds": 1.5, "score": None}


def test_what_is_kept():
    """Of steps 1-8, worked by hand: the last two, the two best (the later of equals), every third; a score may lack."""
    scores = {1: 0.9, 2: 0.1, 3: 0.5, 4: 0.9, 5: None, 6: 0.7, 7: 0.2, 8: 0.3}
    assert checkpoint.Keep(last=2, best=2, every=3).of(scores) == {7, 8, 1, 4, 3, 6}
    assert checkpoint.Keep(last=1, best=1).of(scores) == {8, 4}
    assert checkpoint.Keep(last=3, best=0).of(scores) == {6, 7, 8}
    assert checkpoint.Keep(last=1, best=9).of({1: None, 2: None}) == {2}


def test_the_best_step_stays_and_a_score_that_is_no_number_is_none(tmp_path):
    written = checkpoint.Checkpoints(tmp_path, keep=checkpoint.Keep(last=1, best=1))
    for step, score in enumerate([0.1, 0.9, float("nan"), 0.5], 1):
        written.save(step, STATE, {}, score=score)
    written.wait()
    assert written.steps() == [2, 4]


def test_a_save_that_was_cut_short_does_not_count_and_is_swept_up(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / ".2.part" / "arrays").mkdir(parents=True)
    assert checkpoint.Checkpoints(tmp_path).steps() == [1]
    saved(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_another_shape_is_refused_and_not_taken_for_damage(tmp_path):
    written = saved(tmp_path, 1)
    with pytest.raises(ValueError, match=r"does not fit the run: a is \(\(2, 3\), 'float32'\), expected \(\(2, 4\)"):
        written.newest({**STATE, "a": jnp.zeros((2, 4))})
    with pytest.raises(ValueError, match=r"does not fit the run: b/c is None, expected .* \(2 differ\)"):
        written.restore(1, {"a": STATE["a"], "b": {"c": STATE["count"]}})
    with pytest.raises(ValueError, match="7: there is no such checkpoint"):
        written.restore(7, STATE)
    assert written.steps() == [1]


def test_the_state_may_be_donated_while_it_is_written(tmp_path, monkeypatch):
    """The writer gets a copy: the buffers belong to the next step as soon as `save` returns."""
    written = checkpoint.Checkpoints(tmp_path)
    state = {"a": jnp.arange(1000.0), "count": jnp.int32(0)}
    whole = written._write

    def late(step, host, meta):
        overwrite.result()
        whole(step, host, meta)

    monkeypatch.setattr(written, "_write", late)
    overwrite = concurrent.futures.Future()
    written.save(1, state, {})
    state = jax.block_until_ready(jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)(state))
    overwrite.set_result(None)
    written.wait()
    np.testing.assert_array_equal(written.restore(1, state)[0]["a"], np.arange(1000.0))


def test_a_failed_save_is_told_and_the_second_in_a_row_ends_the_run(tmp_path, capsys, monkeypatch):
    written = saved(tmp_path, 1)
    whole = manifest.write

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    written.save(2, STATE, {})
    written.wait()
    monkeypatch.setattr(manifest, "write", whole)
    written.save(3, STATE, {})
    assert "No space left on device; the last good save is step 1; training goes on" in capsys.readouterr().out
    written.wait()
    assert sorted(os.listdir(tmp_path)) == ["1", "3"]
    monkeypatch.setattr(manifest, "write", full)
    written.save(4, STATE, {})
    written.save(5, STATE, {})
    with pytest.raises(OSError, match=r"5: the save failed: .*No space left on device; the last good save is step 3"):
        written.wait()
    written.save(6, STATE, {})
    with pytest.raises(OSError, match="6: the save failed"):
        written.wait(last=True)


def test_the_newest_sound_step_is_taken_and_the_damaged_one_named_and_put_aside(tmp_path, capsys):
    saved(tmp_path, 1, 2, 3)
    (tmp_path / "3" / "meta.json").write_text("{}")
    step, state, meta = checkpoint.Checkpoints(tmp_path).newest(STATE)
    assert (step, int(state["count"]), meta["seconds"]) == (2, 2, 1.0)
    assert f"{tmp_path}/3/meta.json: 2 bytes, and " in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["2", "3.damaged"]
    assert checkpoint.Checkpoints(tmp_path / "none").newest(STATE) is None


def test_nothing_sound_is_an_error_and_no_fresh_start(tmp_path):
    saved(tmp_path, 1)
    shutil.rmtree(tmp_path / "1" / "arrays")
    with pytest.raises(ValueError, match=r"no sound checkpoint is left in .*1/arrays/.*: the file is missing"):
        checkpoint.Checkpoints(tmp_path).newest(STATE)


def test_the_manifest_lists_every_file(tmp_path):
    saved(tmp_path, 1)
    listed = json.loads((tmp_path / "1" / "MANIFEST.json").read_text())
    there = {path.relative_to(tmp_path / "1").as_posix() for path in (tmp_path / "1").rglob("*") if path.is_file()}
    assert there == {*listed["files"], "MANIFEST.json"} and "meta.json" in listed["files"] and listed["step"] == 1
