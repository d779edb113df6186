"""Weights in and out of the Flax layout of Kaggle and gs://gemma-data, which is kept by Orbax.

The tree there is flat, {"transformer/layer_0/attn/q_einsum": {"w": ...}}; it is also met nested, without "transformer",
and with a weight in place of {"w": weight}.  It differs from Hugging Face's in that key and value share a tensor, and
gate and up; that gate and up are transposed in all published models but Gemma 2 2B; and in the rows of the embedding.
There is no config.json in it: the shapes tell which published model it is.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from thinkfirst.core import sharding
from thinkfirst.models import config as model_config
from thinkfirst.models import gemma, layout

MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")  # any of these files makes a folder Orbax's
PUBLISHED_ROWS = {256_000: 256_128, 262_208: 262_144}  # our rows of an embedding -> those of the published Flax files
DTYPES = ("bfloat16", "float16", "float32")
VISION = ("SigLiP", "vision_encoder", "mm_input_projection", "mm_soft_embedding_norm")
READ_GIGABYTES = 1  # Orbax holds no more than this on the host at once

Shapes = dict[str, Any]  # canonical name -> what Orbax says of the array (shape, dtype)


def is_one(folder: str | pathlib.Path) -> bool:
    """Whether Orbax wrote this folder."""
    return any((pathlib.Path(folder) / mark).exists() for mark in MARKS)


def config(folder: str | pathlib.Path) -> model_config.GemmaConfig:
    """The published model whose shapes these are; it has the embedding rows that both sides have."""
    found = _described(folder)[0]
    for make in model_config.PUBLISHED:
        published = make()
        rows = min(published.vocab_size, PUBLISHED_ROWS.get(published.vocab_size, published.vocab_size))
        shape = dataclasses.replace(published, vocab_size=rows)
        if _num_layers(found) == shape.num_layers and not _differences(found, gemma.Model(shape)):
            return shape
    names = ", ".join(make.__name__ for make in model_config.PUBLISHED)
    raise ValueError(f"{folder}: no config.json, and its shapes are not those of {names}")


def arrays(folder: str | pathlib.Path, model: gemma.Model, shardings: Any) -> Iterator[tuple[layout.Path, jax.Array]]:
    """Each array of `model` with its path, laid out as `shardings` say, in the dtype it is stored in.

    Orbax reads every device's slice of each tensor; layers are stacked on the devices.  Raises ValueError naming all
    tensors that are missing, unexpected, or of another shape or dtype.
    """
    found, place_of = _described(folder)
    layout.refuse(folder, _differences(found, model))
    mesh = jax.tree.leaves(shardings)[0].mesh
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(restore_concurrent_gb=READ_GIGABYTES)) as reader:
        for leaf in _leaves(found, model):  # one at a time: the devices never hold the model twice
            wanted: Any = {}
            how: Any = {}
            for piece in leaf.stored:
                shape, letters = found[piece.name].shape, piece.axes if piece.part is None else "L" + piece.axes
                where = jax.sharding.NamedSharding(mesh, sharding.parameter_spec(letters, shape, mesh))
                abstract = jax.ShapeDtypeStruct(shape, found[piece.name].dtype, sharding=where)
                layout.put(wanted, place_of[piece.name], abstract)
                layout.put(how, place_of[piece.name], ocp.ArrayRestoreArgs(sharding=where))
            asked = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)
            read = reader.restore(pathlib.Path(folder).absolute(), args=asked)
            tensors = [layout.at(read, place_of[piece.name]) for piece in leaf.stored]
            places = tuple((piece.axes, piece.part) for piece in leaf.stored)
            assemble = _assembler(
                places, leaf.letters, leaf.stacked, model.config.vocab_size, layout.at(shardings, leaf.path)
            )
            yield leaf.path, assemble(tensors).block_until_ready()


def save(folder: pathlib.Path, model: gemma.Model, params: gemma.Params) -> None:
    """Writes the weights into `folder`, which does not exist yet, as the published Flax checkpoints are laid out."""
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(folder.absolute(), tree(model, params))


def tree(model: gemma.Model, params: gemma.Params) -> dict[str, dict[str, jax.Array]]:
    """The tree of the published Flax checkpoints."""
    untransposed = (model.config.generation, model.config.width, model.config.num_layers) == (2, 2304, 26)
    parts: dict[str, dict[int | None, jax.Array]] = {}
    for leaf in layout.flax(model.config, model.letters(), transposed_gating=not untransposed):
        take_apart = _taker_apart(leaf.stored[0].axes, leaf.letters, leaf.stacked)
        for piece, tensor in zip(leaf.stored, take_apart(layout.at(params, leaf.path)), strict=True):
            parts.setdefault(piece.name, {})[piece.part] = tensor
    found: dict[str, dict[str, jax.Array]] = {}
    for name, held in parts.items():
        owner, leaf_name = name.rsplit(".", 1)
        found.setdefault(owner, {})[leaf_name] = held[None] if None in held else jnp.stack([held[0], held[1]])
    return found


def _described(folder: str | pathlib.Path) -> tuple[Shapes, dict[str, layout.Path]]:
    """(canonical name -> shape and dtype, canonical name -> path in Orbax's tree) of a folder."""
    folder = pathlib.Path(folder).absolute()
    try:
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(folder).item_metadata.tree
    except (ValueError, FileNotFoundError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder}: not an Orbax checkpoint that can be read: {error}") from error
    shapes, place_of = {}, {}
    for path, leaf in jax.tree.flatten_with_path(tree)[0]:
        place = tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
        name = _canonical(place)
        if not any(mark in name for mark in VISION):
            shapes[name], place_of[name] = leaf, place
    return shapes, place_of


def _canonical(path: tuple[str, ...]) -> str:
    """ "transformer/layer_0/attn/q_einsum.w" for every way in which the tree is written."""
    steps = [step for key in path for step in key.split("/") if step not in ("params", "transformer")]
    if steps[-1] not in ("w", "scale", "input_embedding"):
        steps.append("w")
    return "transformer/" + "/".join(steps[:-1]) + "." + steps[-1]


def _num_layers(found: Shapes) -> int:
    return sum(name.endswith("/attn/q_einsum.w") for name in found)


def _leaves(found: Shapes, model: gemma.Model) -> list[layout.Leaf]:
    """The arrays of ours; gate and up are transposed if they are kept as [F, D]."""
    gating = found.get("transformer/layer_0/mlp/gating_einsum.w")
    transposed = gating is None or tuple(gating.shape[1:]) == (model.config.ff_width, model.config.width)
    return layout.flax(model.config, model.letters(), transposed_gating=transposed)


def _differences(found: Shapes, model: gemma.Model) -> list[str]:
    """What keeps these tensors from being this model."""
    size, expected = layout.sizes(model.config), {}
    for leaf in _leaves(found, model):
        for piece in leaf.stored:
            shape = layout.shape(piece.axes, size)
            expected[piece.name] = shape if piece.part is None else (2, *shape)
    embedding = f"transformer/{layout.FLAX_TOP['embedding',].name}"
    rows, width = expected[embedding]
    known = {name: (tuple(array.shape), np.dtype(array.dtype).name) for name, array in found.items()}
    if embedding in found and tuple(found[embedding].shape) == (PUBLISHED_ROWS.get(rows, rows), width):
        expected[embedding] = tuple(found[embedding].shape)
    return layout.differences(expected, known, DTYPES)


@functools.cache
def _assembler(
    places: tuple[tuple[str, int | None], ...],
    letters: str,
    stacked: bool,
    rows: int,
    where: jax.sharding.NamedSharding,
) -> Callable[[list[jax.Array]], jax.Array]:
    """A program that makes one array of ours of its tensors; an embedding is cut or padded with zeros to `rows`."""

    def assemble(tensors: list[jax.Array]) -> jax.Array:
        turned = [
            jnp.einsum(f"{axes}->{letters}", tensor if part is None else tensor[part])
            for (axes, part), tensor in zip(places, tensors, strict=True)
        ]
        return jnp.stack(turned) if stacked else _with_rows(turned[0], rows, letters)

    return jax.jit(assemble, out_shardings=where)


@functools.cache
def _taker_apart(axes: str, letters: str, stacked: bool) -> Callable[[jax.Array], list[jax.Array]]:
    """A program that makes tensors of one array of ours; an embedding gets the published rows."""

    def take_apart(array: jax.Array) -> list[jax.Array]:
        rows = PUBLISHED_ROWS.get(array.shape[0], array.shape[0])
        layers = list(array) if stacked else [_with_rows(array, rows, letters)]
        return [jnp.einsum(f"{letters}->{axes}", layer) for layer in layers]

    return jax.jit(take_apart)


def _with_rows(array: jax.Array, rows: int, letters: str) -> jax.Array:
    """An embedding of `rows` rows, cut or padded with zeros; any other array as it is."""
    if letters != "VD":
        return array
    return jnp.pad(array[:rows], ((0, max(0, rows - array.shape[0])), (0, 0)))
