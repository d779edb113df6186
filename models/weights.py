"""A Gemma on disk, whoever wrote it: a Hugging Face folder, or the Flax layout that Orbax keeps.

What can be known without reading a weight (`config`) is separate from reading them (`load`), so that tokenizer and
model are checked against each other first.
"""

import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from thinkfirst.core import files
from thinkfirst.models import config as model_config
from thinkfirst.models import flax_weights, gemma, hf_config, hf_weights, layout, lora, quantised, tokenizer

Form = Literal["hf", "orbax"]
GEMMA_IDS = hf_config.SpecialIds(bos_id=2, eos_ids=(1,), pad_id=0)  # of every published Gemma
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def config(folder: str | pathlib.Path) -> model_config.GemmaConfig:
    """The model a folder holds: from its config.json, or, where Orbax wrote none, from the shapes of its tensors."""
    return flax_weights.config(folder) if _is_bare_flax(folder) else hf_config.read(folder)


def special_ids(folder: str | pathlib.Path) -> hf_config.SpecialIds:
    """The ids that begin, end and pad a row, as the folder's own files say."""
    return GEMMA_IDS if _is_bare_flax(folder) else hf_config.special_ids(folder)


def load(
    folder: str | pathlib.Path, model: gemma.Model, shardings: Any, *, merged: Sequence[lora.Adapter] = ()
) -> gemma.Params:
    """Parameters of `model`, each device's slice read straight onto it, in the dtype they are stored in.

    Adapters are `merged` into each array as it comes, and it is quantised then if the model asks for integers: the
    devices never hold more than one array of them as it was stored.
    """
    form = flax_weights if flax_weights.is_one(folder) else hf_weights
    return finished(form.arrays(folder, model, shardings), model, shardings, merged=merged)


def finished(
    arrays: Iterable[tuple[layout.Path, jax.Array]],
    model: gemma.Model,
    shardings: Any,
    *,
    merged: Sequence[lora.Adapter] = (),
) -> gemma.Params:
    """The tree of parameters from arrays as they were stored, with `merged` in them, quantised if the model asks."""
    specs, kind = model.adapted(), model.config.base_dtype
    factors = [(dict(lora.walk(adapter.factors)), adapter.scale) for adapter in merged]
    params: gemma.Params = {}
    for path, array in arrays:
        owner = path[:-1]
        if owner not in specs:
            layout.put(params, path, array)
            continue
        spec, where = specs[owner][0], layout.at(shardings, owner)
        for held, scale in factors:
            if owner in held:
                array = _merger(spec, scale, where["weight"])(array, held[owner])
        if kind == "stored":
            layout.put(params, path, array)
        else:
            integers = quantised.quantiser(spec, kind, where["weight"], where["scale"])(array)
            layout.put(params, owner, jax.block_until_ready(integers))
            array.delete()
    return params


def save(
    folder: str | pathlib.Path,
    model: gemma.Model,
    params: gemma.Params,
    *,
    form: Form = "hf",
    words: tokenizer.Tokenizer | None = None,
    source: str | pathlib.Path = "",
) -> None:
    """Writes a checkpoint folder, in place of one that is there; it appears only when it is whole.

    The tokenizer's file goes with it, and so do the generation settings of `source`, the folder the model came from,
    with whatever else that folder keeps beside the same tokenizer.
    """
    special = _special(words, source)
    with files.new_folder(pathlib.Path(folder)) as part:
        if form == "orbax":
            flax_weights.save(part, model, params)
        else:
            part.mkdir(parents=True)
            hf_weights.save(part, model, params)
        dtype = np.dtype(params["embedding"].dtype).name
        described = hf_config.to_hf(model.config, dtype=dtype, special=special)
        files.write_text(part / hf_config.CONFIG_NAME, json.dumps(described, indent=2) + "\n")
        _copy_beside(part, words, pathlib.Path(source) if source else None, special)


def num_parameters(params: Any) -> int:
    """Count of numbers in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


@functools.cache
def _merger(spec: str, scale: float, where: jax.sharding.Sharding) -> Callable[..., jax.Array]:
    """A program that adds an adapter's factors to a stack of weights."""
    return jax.jit(functools.partial(lora.merged_weight, spec=spec, scale=scale), out_shardings=where)


def _is_bare_flax(folder: str | pathlib.Path) -> bool:
    return flax_weights.is_one(folder) and not (pathlib.Path(folder) / hf_config.CONFIG_NAME).is_file()


def _special(words: tokenizer.Tokenizer | None, source: str | pathlib.Path) -> hf_config.SpecialIds:
    """Special ids of what is written; whatever ended a turn in the source or in the tokenizer ends one."""
    known = special_ids(source) if source else GEMMA_IDS
    if words is None:
        return known
    ends = dict.fromkeys((*known.eos_ids, *words.stop_ids))
    return hf_config.SpecialIds(words.bos_id, tuple(ends), words.pad_id)


def _copy_beside(
    part: pathlib.Path, words: tokenizer.Tokenizer | None, source: pathlib.Path | None, special: hf_config.SpecialIds
) -> None:
    """Puts generation settings and tokenizer files beside the weights."""
    settings: dict[str, Any] = {}
    if source and (source / hf_config.GENERATION_NAME).is_file():
        settings = json.loads((source / hf_config.GENERATION_NAME).read_text())
    settings |= hf_config.generation_to_hf(special)
    files.write_text(part / hf_config.GENERATION_NAME, json.dumps(settings, indent=2) + "\n")
    if words:
        shutil.copyfile(words.path, part / tokenizer.FILE_NAME)
    if source and (words is None or words.path.parent.absolute() == source.absolute()):
        for name in (*TOKENIZER_FILES, *(() if words else (tokenizer.FILE_NAME,))):
            if (source / name).is_file():
                shutil.copyfile(source / name, part / name)
