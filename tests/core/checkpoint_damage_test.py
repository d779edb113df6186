"""Twenty things that can have happened to a checkpoint: each is named, and none is restored as if nothing had."""

import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from thinkfirst.core import checkpoint, manifest

NOISE = np.random.default_rng(0).standard_normal((40, 50), np.float32)  # nothing to compress
STATE = {"a": jnp.asarray(NOISE), "half": jnp.ones(7, jnp.bfloat16), "count": jnp.int32(4)}


@pytest.fixture
def folder(tmp_path):
    """Steps 1 and 2, of which 2 is to be harmed."""
    written = checkpoint.Checkpoints(tmp_path / "stage")
    for step in (1, 2):
        written.save(step, {**STATE, "count": jnp.int32(step)}, {"seconds": 0.5})
    written.wait(last=True)
    return tmp_path / "stage"


def files(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    return sorted(path for path in (folder / "2").rglob(pattern) if path.is_file())


def largest(folder: pathlib.Path) -> pathlib.Path:
    """The file with most of the numbers in it."""
    return max(files(folder, "arrays/**/*"), key=lambda path: path.stat().st_size)


def flip(path: pathlib.Path, place: float = 0.5) -> None:
    """Another value of one bit."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def swap(one: pathlib.Path, other: pathlib.Path) -> None:
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def rewritten(folder: pathlib.Path, change) -> None:
    """What a program that knows the format, but not this run, might put there: the manifest is right."""
    held = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    arrays = folder / "2" / "arrays"
    tree = held.restore(arrays)
    shutil.rmtree(arrays)
    held.save(arrays, args=ocp.args.PyTreeSave(change(tree)))
    manifest.write(folder / "2", 2)


def bfloat16(tree):
    return {**tree, "a": np.asarray(tree["a"], jnp.bfloat16)}


# What is done to step 2 -> what the user reads.  These fall back to step 1.
DAMAGED = {
    "a bit of the arrays": (lambda f: flip(largest(f)), "its sha256 is not that of what was written"),
    "the first byte of the arrays": (lambda f: flip(largest(f), 0.0), "its sha256 is not that of"),
    "the last byte of the arrays": (lambda f: flip(largest(f), 1.0), "its sha256 is not that of"),
    "a bit of Orbax's index": (lambda f: flip(files(f, "manifest.ocdbt")[0]), "manifest.ocdbt: its sha256"),
    "a bit of Orbax's list of leaves": (lambda f: flip(files(f, "_METADATA")[0]), "_METADATA: its sha256"),
    "a bit of Orbax's note": (lambda f: flip(files(f, "_CHECKPOINT_METADATA")[0]), "_CHECKPOINT_METADATA: its sha256"),
    "a bit of the counters": (lambda f: flip(f / "2" / "meta.json"), "meta.json: its sha256"),
    "a bit of the manifest": (lambda f: flip(f / "2" / "MANIFEST.json"), "MANIFEST.json: "),
    "a digit of the manifest": (
        lambda f: (f / "2" / "MANIFEST.json").write_text(
            (f / "2" / "MANIFEST.json").read_text().replace('"step": 2', '"step": 3')
        ),
        "MANIFEST.json: its own sha256 is not that of what it says",
    ),
    "the end of the arrays": (lambda f: os.truncate(largest(f), largest(f).stat().st_size // 2), "bytes, and"),
    "all of a file but its name": (lambda f: os.truncate(largest(f), 0), "0 bytes, and"),
    "a zero more": (lambda f: largest(f).write_bytes(largest(f).read_bytes() + b"\0"), "bytes, and"),
    "a file of the arrays": (lambda f: largest(f).unlink(), "the file is missing"),
    "the counters": (lambda f: (f / "2" / "meta.json").unlink(), "meta.json: the file is missing"),
    "all arrays": (lambda f: shutil.rmtree(f / "2" / "arrays"), "the file is missing"),
    "the manifest: a half-written step": (
        lambda f: (f / "2" / "MANIFEST.json").unlink(),
        "the file is missing: the save was not finished",
    ),
    "two files, swapped": (lambda f: swap(*files(f, "*")[-2:]), "2/arrays/"),
    "a file of another step": (
        lambda f: shutil.copy(f / "1" / "meta.json", f / "2" / "meta.json") and flip(f / "2" / "meta.json", 0.9),
        "meta.json: its sha256",
    ),
    "the whole step: it is another one": (
        lambda f: shutil.rmtree(f / "2") or shutil.copytree(f / "1", f / "2"),
        "this is step 1, in the folder of step 2",
    ),
    "a file that nobody wrote": (lambda f: (f / "2" / "arrays" / "d2").write_text("x"), "does not list"),
}

# These are sound, and not of this run: the run does not begin, and nothing is put aside.
UNFIT = {
    "another type": (lambda f: rewritten(f, bfloat16), r"a is \(\(40, 50\), 'bfloat16'\), expected .*'float32'"),
    "a leaf too many": (lambda f: rewritten(f, lambda tree: {**tree, "b": np.ones(3)}), r"b is .*, expected None"),
    "a leaf too few": (lambda f: rewritten(f, lambda tree: {"a": tree["a"]}), r"count is None, expected .*2 differ"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_step_is_named_and_the_one_before_is_taken(folder, capsys, case):
    harm, message = DAMAGED[case]
    harm(folder)
    with pytest.raises(manifest.Damaged, match=f"{folder}/2/"):
        checkpoint.Checkpoints(folder).restore(2, STATE)
    step, state, _ = checkpoint.Checkpoints(folder).newest(STATE)
    said = capsys.readouterr().out
    assert said.startswith("damaged checkpoint, not used: ") and f"{folder}/2/" in said and message in said, said
    assert (step, int(state["count"])) == (1, 1)
    np.testing.assert_array_equal(state["a"], STATE["a"])
    assert sorted(os.listdir(folder)) == ["1", "2.damaged"]


@pytest.mark.parametrize("case", UNFIT)
def test_what_is_not_of_this_run_is_refused(folder, case):
    harm, message = UNFIT[case]
    harm(folder)
    with pytest.raises(ValueError, match=rf"{folder}/2: this checkpoint does not fit the run: {message}") as caught:
        checkpoint.Checkpoints(folder).newest(STATE)
    assert not isinstance(caught.value, manifest.Damaged)
    assert sorted(os.listdir(folder)) == ["1", "2"]


def test_orbax_alone_believes_a_flipped_bit(folder):
    """Why there is a manifest: most bits of the arrays may be flipped, and what is restored is wrong."""
    flip(largest(folder))
    restored = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(folder / "2" / "arrays")
    assert not np.array_equal(np.asarray(restored["a"]), np.asarray(STATE["a"]))
