"""Safetensors files read by slices: the header is checked whole before anything is allocated.

    8 bytes      length of the header, little-endian
    header       JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, and "__metadata__"
    the rest     the tensors' bytes, back to back in the order of their offsets

Bytes are read, not mapped, so that what a process holds is what it asked for.  Format: huggingface/safetensors.
"""

import json
import math
import os
import pathlib
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 10_000
BLOCK_BYTES = 32 * 2**20  # the most that is read at once where only some columns are wanted

_ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2}
_ITEM_BYTES |= {"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}
FLOATS: dict[str, np.dtype] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}  # the dtypes a weight may have


class Entry(NamedTuple):
    """What the header says of one tensor; `begin` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    num_bytes: int


class Made(NamedTuple):
    """A tensor to be written: its name, dtype and shape are known before `make` computes it."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Bytes it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """The tensors of one file, by name.  Raises ValueError naming the file and what is wrong with it."""

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file")
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _read_header(file, size, self.path)
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        if len(header) > MAX_TENSORS:
            raise ValueError(f"{self.path}: {len(header)} tensors, at most {MAX_TENSORS} are read")
        self.entries = {name: _entry(self.path, name, raw, start) for name, raw in header.items()}
        _check_layout(self.path, self.entries, start, size)

    def read(self, name: str, index: Sequence[slice] | None = None) -> np.ndarray:
        """The part `index` (a slice of step 1 per axis; all by default) of a tensor of a dtype in FLOATS."""
        entry = self.entries[name]
        dtype = FLOATS[entry.dtype]
        if not entry.shape:
            return np.fromfile(self.path, dtype, 1, offset=entry.begin).reshape(())
        bounds = [part.indices(size)[:2] for part, size in zip(index or _whole(entry.shape), entry.shape, strict=True)]
        (first, last), *inner = bounds
        row = entry.shape[1:]
        found = np.empty([stop - start for start, stop in bounds], dtype)
        row_bytes = math.prod(row) * dtype.itemsize
        if not found.size:
            return found
        contiguous = inner == [(0, size) for size in row]
        step = last - first if contiguous else max(1, BLOCK_BYTES // row_bytes)
        with open(self.path, "rb", buffering=0) as file:
            for begin in range(first, last, step):
                end = min(begin + step, last)
                block = found if contiguous else np.empty((end - begin, *row), dtype)
                file.seek(entry.begin + begin * row_bytes)
                _fill(file, block, self.path, name)
                if not contiguous:
                    found[begin - first : end - first] = block[(slice(None), *(slice(*bound) for bound in inner))]
        return found


def write(path: pathlib.Path, tensors: Sequence[Made]) -> None:
    """Writes the file that Hugging Face's own writer would, one tensor in memory at a time."""
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    with open(path, "wb") as file:
        file.write(header(ordered))
        for tensor in ordered:
            made = np.ascontiguousarray(tensor.make())
            assert made.dtype == tensor.dtype and made.shape == tensor.shape, tensor.name
            file.write(_bytes(made))
        file.flush()
        os.fsync(file.fileno())


def header(tensors: Sequence[Made]) -> bytes:
    """The opening of a file that holds `tensors` in this order."""
    names = {dtype: name for name, dtype in FLOATS.items()}
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor in tensors:
        offsets = [place, place + tensor.num_bytes]
        described[tensor.name] = {"dtype": names[tensor.dtype], "shape": tensor.shape, "data_offsets": offsets}
        place += tensor.num_bytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _read_header(file: Any, size: int, path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """(header, where the tensors start)."""
    opening = file.read(8)
    if opening.startswith(b"version "):
        raise ValueError(f"{path}: not a safetensors file but a Git LFS pointer: fetch the file it stands for")
    if len(opening) < 8:
        raise ValueError(f"{path}: not a safetensors file: {size} bytes")
    (length,) = struct.unpack("<Q", opening)
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"{path}: not a safetensors file: a header of {length} bytes, at most {MAX_HEADER_BYTES}")
    if 8 + length > size:
        raise ValueError(f"{path}: cut short: a header of {length} bytes in a file of {size}")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a safetensors file: its header is not JSON: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError(f"{path}: not a safetensors file: its header is not an object")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _entry(path: pathlib.Path, name: str, raw: Any, start: int) -> Entry:
    """The checked entry of one tensor."""
    try:
        dtype, shape, (begin, end) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError("a negative or fractional size")
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: {name}: bad entry in the header: {error}") from error
    if dtype not in _ITEM_BYTES:
        raise ValueError(f"{path}: {name}: unknown dtype {dtype!r}")
    needed = math.prod(shape) * _ITEM_BYTES[dtype]
    if end - begin != needed:
        raise ValueError(f"{path}: {name}: {dtype} {list(shape)} takes {needed} bytes, its offsets span {end - begin}")
    return Entry(dtype, shape, start + begin, needed)


def _check_layout(path: pathlib.Path, entries: dict[str, Entry], start: int, size: int) -> None:
    """Raises unless the tensors fill the rest of the file, without overlaps and gaps."""
    place = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].num_bytes)):
        if entry.begin != place:
            what = "overlaps the one before it" if entry.begin < place else "leaves a gap before it"
            raise ValueError(f"{path}: {name}: {what} (byte {entry.begin}, expected {place})")
        place += entry.num_bytes
    if place != size:
        what = "cut short" if place > size else "too long"
        raise ValueError(f"{path}: {what}: its header describes {place} bytes, the file has {size}")


def _whole(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return (slice(None),) * len(shape)


def _bytes(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array; numpy hands out that of bfloat16 only as another dtype."""
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _fill(file: Any, block: np.ndarray, path: pathlib.Path, name: str) -> None:
    """Reads until `block` is full."""
    view = _bytes(block)
    while len(view):
        count = file.readinto(view)
        if not count:
            raise ValueError(f"{path}: {name}: the file ended while it was read")
        view = view[count:]
