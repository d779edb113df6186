"""Weights in and out of Hugging Face folders: one safetensors file, or several and an index."""

import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from thinkfirst.core import files, sharding
from thinkfirst.models import gemma, layout, tensor_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # transformers' own limit
PREFIXES = ("model.", "language_model.model.", "model.language_model.")
VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


class Tensors:
    """The tensors of a folder, whichever files they are in; those of the vision tower are left out and counted."""

    def __init__(self, folder: str | pathlib.Path) -> None:
        self.folder = pathlib.Path(folder)
        self._file_of = {name: file for file in _files(self.folder) for name in file.entries}
        self.num_vision = sum(name.startswith(VISION) for name in self._file_of)
        names = [name for name in self._file_of if not name.startswith(VISION)]
        if len(names) > tensor_file.MAX_TENSORS:
            raise ValueError(f"{self.folder}: {len(names)} tensors, at most {tensor_file.MAX_TENSORS} are read")
        self.entries = {name: self._file_of[name].entries[name] for name in names}
        # "model." is also how "model.language_model." begins: the longest that fits is the one.
        ending = layout.HF_TOP["embedding",].name
        self.prefix = next((prefix for prefix in PREFIXES if prefix + ending in names), PREFIXES[0])

    def read(self, name: str, index: Sequence[slice]) -> np.ndarray:
        """A part of a tensor."""
        return self._file_of[name].read(name, index)


def arrays(folder: str | pathlib.Path, model: gemma.Model, shardings: Any) -> Iterator[tuple[layout.Path, jax.Array]]:
    """Each array of `model` with its path, laid out as `shardings` say, in the dtype it is stored in.

    Every device gets its slice from the file.  Raises ValueError naming all tensors that are missing, unexpected, of
    another shape, or of no dtype of a weight.
    """
    tensors = Tensors(folder)
    leaves = layout.huggingface(model.config, model.letters(), prefix=tensors.prefix)
    size = layout.sizes(model.config)
    expected = {stored.name: layout.shape(stored.axes, size) for leaf in leaves for stored in leaf.stored}
    found = {name: (entry.shape, entry.dtype) for name, entry in tensors.entries.items()}
    layout.refuse(folder, layout.differences(expected, found, tensor_file.FLOATS))
    for leaf in leaves:
        dtype = tensor_file.FLOATS[tensors.entries[leaf.stored[0].name].dtype]
        rows = (len(leaf.stored),) if leaf.stacked else ()
        whole = (*rows, *layout.shape(leaf.letters, size))
        read = functools.partial(_part, leaf, tensors, size)
        yield leaf.path, sharding.place(whole, dtype, layout.at(shardings, leaf.path), read)
    if tensors.num_vision:
        print(f"{folder}: {tensors.num_vision} tensors of the vision tower are not read", flush=True)


def save(folder: pathlib.Path, model: gemma.Model, params: gemma.Params, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the weights into `folder`, which exists, with an index when they take more than `shard_bytes`."""
    shards = plan(made(model, params), shard_bytes)
    if len(shards) == 1:
        tensor_file.write(folder / SINGLE, shards[0])
        return
    for number, shard in enumerate(shards, 1):
        tensor_file.write(folder / shard_name(number, len(shards)), shard)
    files.write_text(folder / INDEX, index_text(shards))


def made(model: gemma.Model, params: gemma.Params) -> list[tensor_file.Made]:
    """Every tensor to be written, in the order of transformers' modules; `params` may be shapes, to plan with."""
    by_name = {}
    size = layout.sizes(model.config)
    for leaf in layout.huggingface(model.config, model.letters()):
        array = layout.at(params, leaf.path)
        for row, stored in enumerate(leaf.stored):
            make = functools.partial(_tensor, array, row if leaf.stacked else None, stored, leaf.letters)
            shape = layout.shape(stored.axes, size)
            by_name[stored.name] = tensor_file.Made(stored.name, np.dtype(array.dtype), shape, make)
    return [by_name[name] for name in _module_order(model)]


def plan(tensors: Sequence[tensor_file.Made], shard_bytes: int) -> list[list[tensor_file.Made]]:
    """The tensors in order, cut wherever the next one would take a file above `shard_bytes`."""
    shards: list[list[tensor_file.Made]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(held.num_bytes for held in shards[-1]) + tensor.num_bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def shard_name(number: int, total: int) -> str:
    """File name of shard `number` (1, 2, ...)."""
    return f"model-{number:05d}-of-{total:05d}.safetensors"


def index_text(shards: Sequence[Sequence[tensor_file.Made]]) -> str:
    """Contents of the index of several files."""
    where = {tensor.name: shard_name(number, len(shards)) for number, shard in enumerate(shards, 1) for tensor in shard}
    total = sum(tensor.num_bytes for shard in shards for tensor in shard)
    text = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return json.dumps(text, indent=2) + "\n"


def _files(folder: pathlib.Path) -> Iterator[tensor_file.TensorFile]:
    """The folder's files, each holding the tensors that the index, if there is one, says it holds."""
    if (folder / SINGLE).is_file():
        yield tensor_file.TensorFile(folder / SINGLE)
        return
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        if pickles:
            raise ValueError(
                f"{folder / pickles[0]}: a pickle, which runs code when it is read, is not opened; "
                f"fetch or convert to {SINGLE}"
            )
        raise ValueError(f"{folder / SINGLE}: no such file, nor {INDEX}")
    named = _read_index(folder / INDEX)
    for file_name in sorted(set(named.values())):
        file = tensor_file.TensorFile(folder / file_name)
        expected = {name for name, where in named.items() if where == file_name}
        differing = sorted(expected ^ file.entries.keys())
        if differing:
            raise ValueError(
                f"{folder / INDEX} and {file_name} do not agree on {', '.join(differing[: layout.NUM_SHOWN])}"
            )
        yield file


def _read_index(path: pathlib.Path) -> dict[str, str]:
    """Tensor -> file name, as the index has it."""
    if path.stat().st_size > tensor_file.MAX_HEADER_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, at most {tensor_file.MAX_HEADER_BYTES}")
    try:
        named = json.loads(path.read_text())["weight_map"]
        plain = all(type(file) is str and pathlib.PurePath(file).name == file for file in named.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not an index of safetensors files: {error}") from error
    if not named or not plain:
        raise ValueError(f"{path}: weight_map must map tensors to files of this folder")
    return named


def _part(leaf: layout.Leaf, tensors: Tensors, size: dict[str, int], part: tuple[slice, ...]) -> np.ndarray:
    """The part of a leaf that one device keeps."""
    rows, inner = (leaf.stored[part[0]], part[1:]) if leaf.stacked else (leaf.stored, part)
    read = [
        layout.to_ours(
            tensors.read(stored.name, layout.index(stored.axes, leaf.letters, inner, size)),
            stored.axes,
            leaf.letters,
            size,
        )
        for stored in rows
    ]
    return np.stack(read) if leaf.stacked else read[0]


def _tensor(array: Any, row: int | None, stored: layout.Stored, letters: str) -> np.ndarray:
    """One tensor of the file from an array of ours."""
    if row is not None:
        array = jax.lax.dynamic_index_in_dim(array, row, keepdims=False)  # one program for all rows
    return layout.to_theirs(jax.device_get(array), stored.axes, letters)


def _module_order(model: gemma.Model) -> list[str]:
    """Names in the order in which transformers walks its modules: embedding, layers, last norm."""
    config, (embedding, norm) = model.config, layout.HF_TOP.values()
    held = [rule.name for path, rule in layout.HF_BLOCK.items() if layout.has(config, path)]
    layers = [f"model.layers.{layer}.{name}" for layer in range(config.num_layers) for name in held]
    return [f"model.{embedding.name}", *layers, f"model.{norm.name}"]
