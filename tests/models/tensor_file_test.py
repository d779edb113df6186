"""Slices of a tensor are those of numpy; a header that lies is refused before anything is allocated."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from thinkfirst.models import tensor_file

RNG = np.random.default_rng(0)
HELD = {
    "scalar": np.array(3.5, np.float32),
    "row": RNG.standard_normal(7).astype(np.float32),
    "matrix": RNG.standard_normal((9, 5)).astype(ml_dtypes.bfloat16),
    "cube": RNG.standard_normal((3, 4, 5)).astype(np.float16),
}


@pytest.fixture
def file(tmp_path):
    safetensors.numpy.save_file(HELD, tmp_path / "some.safetensors")
    return tmp_path / "some.safetensors"


def written(path, header, size=None, *, length=None):
    """A file with this header and `size` bytes of zeros behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(size or 0))
    return path


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize("block", [tensor_file.BLOCK_BYTES, 1, 24])
def test_slices_are_numpys(file, block, monkeypatch):
    monkeypatch.setattr(tensor_file, "BLOCK_BYTES", block)
    opened = tensor_file.TensorFile(file)
    for name, whole in HELD.items():
        np.testing.assert_array_equal(opened.read(name), whole)
    for name, index in [
        ("row", (slice(2, 5),)),
        ("row", (slice(4, 4),)),
        ("matrix", (slice(None), slice(1, 3))),
        ("matrix", (slice(3, 8), slice(None))),
        ("matrix", (slice(8, 9), slice(4, 5))),
        ("cube", (slice(1, 3), slice(None), slice(2, 5))),
        ("cube", (slice(None), slice(1, 2), slice(None))),
    ]:
        found = opened.read(name, index)
        assert found.dtype == HELD[name].dtype
        np.testing.assert_array_equal(found, HELD[name][index])


def test_what_is_written_is_what_hugging_faces_writer_writes(tmp_path, file):
    same_dtype = {name: RNG.standard_normal((2, 3)).astype(np.float32) for name in ("b", "a", "c.weight")}
    safetensors.numpy.save_file(same_dtype, tmp_path / "theirs", metadata={"format": "pt"})
    made = [tensor_file.Made(name, x.dtype, x.shape, lambda x=x: x) for name, x in same_dtype.items()]
    tensor_file.write(tmp_path / "ours", made)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize(
    ("header", "size", "length", "message"),
    [
        (b"", 0, None, "not JSON"),
        (b"[1]", 0, None, "not an object"),
        (b'{"a": 1', 0, None, "not JSON"),
        (b"\xff\xfe", 0, None, "not JSON"),
        (b"[" * 100_000, 0, None, "not JSON"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', 4, None, "stands twice"),
        ({}, 0, 2**24 + 1, "a header of 16777217 bytes"),
        ({}, 0, 2**63, "a header of 9223372036854775808 bytes"),
        ({}, 0, 500, "cut short"),
        ({"__metadata__": 3}, 0, None, "not an object"),
        ({"a": 3}, 0, None, "a: bad entry"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, None, "a: bad entry"),
        ({"a": entry(0, 8, (-2,))}, 8, None, "a: bad entry"),
        ({"a": entry(0, 8, (2.0,))}, 8, None, "a: bad entry"),
        ({"a": entry(0, 8, (True,))}, 8, None, "a: bad entry"),
        ({"a": entry(0, 8, dtype="F31")}, 8, None, "unknown dtype 'F31'"),
        ({"a": entry(0, 12)}, 12, None, r"a: F32 \[2\] takes 8 bytes, its offsets span 12"),
        ({"a": entry(0, 8, (2**62, 4))}, 8, None, "its offsets span 8"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, None, "b: overlaps"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8, None, "b: overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20, None, "b: leaves a gap"),
        ({"a": entry(0, 8)}, 7, None, "cut short"),
        ({"a": entry(0, 8)}, 9, None, "too long"),
        ({f"t{i}": entry(0, 0, (0,)) for i in range(10_001)}, 0, None, "10001 tensors"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, size, length, message):
    path = written(tmp_path / "bad.safetensors", header, size, length=length)
    with pytest.raises(ValueError, match=message) as caught:
        tensor_file.TensorFile(path)
    assert str(path) in str(caught.value)


def test_other_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        tensor_file.TensorFile(tmp_path / "nowhere")
    for content, message in [
        (b"", "0 bytes"),
        (b"abc", "3 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer"),
    ]:
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            tensor_file.TensorFile(tmp_path / "other")


def test_a_file_cut_short_after_it_was_opened_is_noticed(file):
    opened = tensor_file.TensorFile(file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="ended while it was read"):
        for name in HELD:
            opened.read(name)
