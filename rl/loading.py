"""From a recipe or a folder to a policy: tokenizer and model are checked against each other before a weight is read."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from thinkfirst.core import mesh as mesh_lib
from thinkfirst.core import sharding
from thinkfirst.models import config as model_config
from thinkfirst.models import gemma, lora, peft, weights
from thinkfirst.models import tokenizer as tokenizer_lib
from thinkfirst.rl import policy, stages
from thinkfirst.rl.data import source

Dtype = Literal["", "float32", "bfloat16"]


def from_config(config: stages.RunConfig, workdir: pathlib.Path, *, dtype: Dtype = "") -> policy.Policy:
    """The policy a recipe starts from: its checkpoint and adapters, or random weights of its architecture."""
    if config.adapters and not config.checkpoint:
        raise ValueError(f"adapters={','.join(config.adapters)} are of a base: set checkpoint=FOLDER too")
    if not (config.checkpoint or config.random_weights or isinstance(config.stages[0], stages.Pretrain)):
        raise ValueError(f"checkpoint is not set: --set checkpoint=FOLDER (the weights of {config.architecture})")
    if config.checkpoint:
        subject = from_folder(
            config.checkpoint,
            mesh_lib.make(config.mesh),
            tokenizer=config.tokenizer,
            dtype=dtype,
            base_dtype=config.base_dtype,
        )
    else:
        shape = _asked_for(_architecture(config.architecture), dtype, config.base_dtype)
        words = _tokenizer(config, workdir, shape)
        tokenizer_lib.check_vocab(words, shape.vocab_size)
        devices = mesh_lib.make(config.mesh)
        model = gemma.Model(shape, devices)
        reread = functools.partial(_drawn, config.seed)
        subject = policy.Policy(model, words, devices, reread(model), stop_ids=words.stop_ids, reread=reread)
    subject = dataclasses.replace(
        subject,
        instruction=config.instruction,
        max_prompt_tokens=config.max_prompt_tokens,
        lanes=config.lanes,
        int8_cache=config.int8_cache,
    )
    merge_adapters(subject, config.adapters)
    return subject


def from_folder(
    folder: str | pathlib.Path,
    devices: Mesh,
    *,
    tokenizer: str = "",
    dtype: Dtype = "",
    base_dtype: model_config.BaseDtype = "stored",
) -> policy.Policy:
    """A checkpoint folder laid out on the mesh; it computes in `dtype`, by default the one its config names.

    The tokenizer is the folder's, or its parent's where Kaggle keeps it, unless another file is named.  A folder
    without one still serves rows of tokens.
    """
    shape = _asked_for(weights.config(folder), dtype, base_dtype)
    words, special = _words_of(pathlib.Path(folder), tokenizer), weights.special_ids(folder)
    if words:
        tokenizer_lib.check_vocab(words, shape.vocab_size)
        tokenizer_lib.check_special(words, bos_id=special.bos_id, eos_ids=special.eos_ids, pad_id=special.pad_id)
    stop_ids = tuple(dict.fromkeys((*special.eos_ids, *(words.stop_ids if words else ()))))
    if beyond := [stop for stop in stop_ids if not 0 <= stop < shape.vocab_size]:
        raise ValueError(f"{folder}: stop id {beyond[0]} is outside the vocabulary of {shape.vocab_size}")
    model = gemma.Model(shape, devices)
    reread = functools.partial(_read, folder)
    return policy.Policy(model, words, devices, reread(model), stop_ids=stop_ids, source=str(folder), reread=reread)


def merge_adapters(subject: policy.Policy, folders: Sequence[str]) -> None:
    """Makes the adapters of PEFT folders part of the base, in order, and the policy's own before them."""
    for folder in folders:
        if subject.adapter is not None:
            subject.merge()
        subject.adapter = subject.laid_out(peft.load(folder, subject.model))
        subject.merge()


def _read(folder: str | pathlib.Path, model: gemma.Model, merged: Sequence[lora.Adapter] = ()) -> gemma.Params:
    return weights.load(folder, model, _layout(model), merged=merged)


def _drawn(seed: int, model: gemma.Model, merged: Sequence[lora.Adapter] = ()) -> gemma.Params:
    """Random weights; those of a base of integers are drawn as they would be stored."""
    stored = jax.device_put(model.stored.init(seed), _layout(model.stored))
    named = [(tuple(key.key for key in path), leaf) for path, leaf in jax.tree.leaves_with_path(stored)]
    return weights.finished(named, model, _layout(model), merged=merged)


def _layout(model: gemma.Model) -> Any:
    assert model.mesh is not None
    return sharding.parameters(model.letters(), model.shapes(), model.mesh)


def _asked_for(
    shape: model_config.GemmaConfig, dtype: Dtype, base_dtype: model_config.BaseDtype
) -> model_config.GemmaConfig:
    return dataclasses.replace(shape, dtype=dtype or shape.dtype, base_dtype=base_dtype)


def _architecture(name: str) -> model_config.GemmaConfig:
    if name not in model_config.BY_NAME:
        known = ", ".join(model_config.BY_NAME)
        raise ValueError(f"architecture={name!r}: there is {known} (or set checkpoint=FOLDER)")
    return model_config.BY_NAME[name]()


def _tokenizer(
    config: stages.RunConfig, workdir: pathlib.Path, shape: model_config.GemmaConfig
) -> tokenizer_lib.Tokenizer:
    """The configured tokenizer, or, for a run that pre-trains, one made from its corpus."""
    if config.tokenizer:
        return tokenizer_lib.Tokenizer(config.tokenizer)
    if not isinstance(config.stages[0], stages.Pretrain):
        raise ValueError("tokenizer is not set: --set tokenizer=FILE (a SentencePiece .model)")
    path = workdir / tokenizer_lib.FILE_NAME
    if not path.is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        tokenizer_lib.train(source.corpus(config.seed), path, vocab_size=shape.vocab_size)
    return tokenizer_lib.Tokenizer(path)


def _words_of(folder: pathlib.Path, named: str) -> tokenizer_lib.Tokenizer | None:
    """The tokenizer named, or the one beside the weights, or the one a level above them."""
    if named:
        return tokenizer_lib.Tokenizer(named)
    places = (folder / tokenizer_lib.FILE_NAME, folder.absolute().parent / tokenizer_lib.FILE_NAME)
    found = next((place for place in places if place.is_file()), None)
    return tokenizer_lib.Tokenizer(found) if found else None
