"""Weights in and out of Hugging Face checkpoint folders, by one table of names.

A tensor of layer i becomes row i // len(pattern) of the stacked array of its place in the pattern.  Hugging Face keeps
projections as [out, in] matrices; `_RULES` says how each becomes the einsum's axes.
"""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors needs
import numpy as np
import safetensors
import safetensors.numpy

from thinkfirst.core import files
from thinkfirst.models import config as model_config
from thinkfirst.models import gemma, hf_config, tokenizer

WEIGHTS_NAME = "model.safetensors"

# Our path inside a block -> (Hugging Face's name inside a layer, axes in Hugging Face's order, ours).
_RULES: dict[tuple[str, ...], tuple[str, str, str]] = {
    ("attention", "query", "weight"): ("self_attn.q_proj.weight", "(NH)D", "DNH"),
    ("attention", "key", "weight"): ("self_attn.k_proj.weight", "(KH)D", "DKH"),
    ("attention", "value", "weight"): ("self_attn.v_proj.weight", "(KH)D", "DKH"),
    ("attention", "output", "weight"): ("self_attn.o_proj.weight", "D(NH)", "NHD"),
    ("attention", "query_norm", "scale"): ("self_attn.q_norm.weight", "H", "H"),
    ("attention", "key_norm", "scale"): ("self_attn.k_norm.weight", "H", "H"),
    ("attention_norm", "scale"): ("input_layernorm.weight", "D", "D"),
    ("attention_post_norm", "scale"): ("post_attention_layernorm.weight", "D", "D"),
    ("ff_norm", "scale"): ("pre_feedforward_layernorm.weight", "D", "D"),
    ("ff_post_norm", "scale"): ("post_feedforward_layernorm.weight", "D", "D"),
    ("ff", "gate", "weight"): ("mlp.gate_proj.weight", "FD", "DF"),
    ("ff", "up", "weight"): ("mlp.up_proj.weight", "FD", "DF"),
    ("ff", "down", "weight"): ("mlp.down_proj.weight", "DF", "FD"),
}
_TOP: dict[tuple[str, ...], str] = {
    ("embedding",): "model.embed_tokens.weight",
    ("final_norm", "scale"): "model.norm.weight",
}


def load(folder: str | pathlib.Path, model: gemma.Model) -> gemma.Params:
    """Parameters of `model` from model.safetensors, as host arrays of the configured dtype.

    Raises ValueError listing every missing, unexpected or misshapen tensor.
    """
    path = pathlib.Path(folder) / WEIGHTS_NAME
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error
    expected = {name: shape for name, _, _, shape in _places(model.config, model.shapes())}
    problems = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{name} has shape {tensors[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        raise ValueError(f"{path} does not hold this model: " + "; ".join(problems))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.shapes())
    for name, place, to_ours, _ in _places(model.config, params):
        place[...] = to_ours(tensors[name]).astype(place.dtype)
    return params


def save(folder: str | pathlib.Path, model: gemma.Model, params: gemma.Params, *, words: tokenizer.Tokenizer) -> None:
    """Writes a folder that transformers opens: config, generation config, weights and tokenizer.model."""
    folder = pathlib.Path(folder)
    host = jax.tree.map(np.asarray, params)
    tensors = {}
    for name, place, to_ours, shape in _places(model.config, host):
        tensors[name] = np.ascontiguousarray(_inverse(to_ours, shape, place))
    special = hf_config.SpecialIds(words.bos_id, words.stop_ids, words.pad_id)
    described = hf_config.to_hf(model.config, dtype=host["embedding"].dtype.name, special=special)
    stop = hf_config.generation_to_hf(special)
    files.write_bytes(folder / WEIGHTS_NAME, safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    files.write_text(folder / "generation_config.json", json.dumps(stop, indent=2) + "\n")
    files.write_text(folder / "config.json", json.dumps(described, indent=2) + "\n")
    files.write_bytes(folder / tokenizer.FILE_NAME, words.path.read_bytes())


def _places(
    config: model_config.GemmaConfig, params: gemma.Params
) -> Iterator[tuple[str, Any, Callable[[np.ndarray], np.ndarray], tuple[int, ...]]]:
    """(tensor's name, view of our array it belongs in, how to turn it into ours, its shape) of every tensor."""
    sizes = {
        "D": config.width,
        "F": config.ff_width,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
    }
    same = lambda tensor: tensor  # noqa: E731
    for path, name in _TOP.items():
        leaf = _at(params, path)
        yield name, leaf, same, tuple(leaf.shape)
    for layer in range(config.num_layers):
        period, place = divmod(layer, len(config.pattern))
        whole = period < config.num_layers // len(config.pattern)
        block = params["stack_0" if whole or len(config.stacks) == 1 else "stack_1"][f"layer_{place}"]
        for path, (suffix, theirs, ours) in _RULES.items():
            if path[1] in ("query_norm", "key_norm") and not config.query_key_norm:
                continue
            leaf = _at(block, path)
            view = leaf[period if whole else 0] if isinstance(leaf, np.ndarray) else leaf
            yield f"model.layers.{layer}.{suffix}", view, _reader(theirs, ours, sizes), _shape(theirs, sizes)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _shape(axes: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """Shape of "(NH)D": a bracket is one axis."""
    shape, open_bracket = [], False
    for symbol in axes:
        if symbol == "(":
            shape.append(1)
            open_bracket = True
        elif symbol == ")":
            open_bracket = False
        elif open_bracket:
            shape[-1] *= sizes[symbol]
        else:
            shape.append(sizes[symbol])
    return tuple(shape)


def _reader(theirs: str, ours: str, sizes: dict[str, int]) -> Callable[[np.ndarray], np.ndarray]:
    """The view of a tensor with axes `theirs` as an array with axes `ours`."""
    flat = theirs.replace("(", "").replace(")", "")
    split = tuple(sizes[letter] for letter in flat)
    order = tuple(flat.index(letter) for letter in ours)
    return lambda tensor: tensor.reshape(split).transpose(order)


def _inverse(to_ours: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], place: np.ndarray) -> np.ndarray:
    """The tensor `to_ours` would turn into `place`: `to_ours` only makes views, so writing through one inverts it."""
    tensor = np.zeros(shape, place.dtype)
    to_ours(tensor)[...] = place
    return tensor


def num_parameters(params: Any) -> int:
    """Count of numbers in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
