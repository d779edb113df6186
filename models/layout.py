"""Where each tensor of a checkpoint belongs in our tree: one table per format.

A tensor of layer i is row i // len(pattern) of the stacked array of its place in the pattern.  The tables give, for
every weight of a layer, its name there and its axes: a bracket is one axis, so a matrix "(NH)D" is our "DNH".

    Hugging Face     model.layers.3.self_attn.q_proj.weight              [(NH), D]
    Flax             transformer/layer_3/attn/q_einsum.w                 [N, D, H]

Flax keeps key and value in one tensor, and gate and up: `part` is the place of a weight in it.  Sources: the published
checkpoints' tensor lists; google-deepmind/gemma for the Flax names.
"""

import dataclasses
import math
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from thinkfirst.models import config as model_config

Path = tuple[str, ...]
NUM_SHOWN = 20  # differences named in an error


@dataclasses.dataclass(frozen=True)
class Rule:
    """A weight's name in a checkpoint, its axes there and, where several share a tensor, its place in it."""

    name: str
    axes: str
    part: int | None = None


# Path of a weight inside a block of ours -> where Hugging Face keeps it inside a layer, in the order of its modules.
HF_BLOCK: dict[Path, Rule] = {
    ("attention", "query", "weight"): Rule("self_attn.q_proj.weight", "(NH)D"),
    ("attention", "key", "weight"): Rule("self_attn.k_proj.weight", "(KH)D"),
    ("attention", "value", "weight"): Rule("self_attn.v_proj.weight", "(KH)D"),
    ("attention", "output", "weight"): Rule("self_attn.o_proj.weight", "D(NH)"),
    ("attention", "query_norm", "scale"): Rule("self_attn.q_norm.weight", "H"),
    ("attention", "key_norm", "scale"): Rule("self_attn.k_norm.weight", "H"),
    ("ff", "gate", "weight"): Rule("mlp.gate_proj.weight", "FD"),
    ("ff", "up", "weight"): Rule("mlp.up_proj.weight", "FD"),
    ("ff", "down", "weight"): Rule("mlp.down_proj.weight", "DF"),
    ("attention_norm", "scale"): Rule("input_layernorm.weight", "D"),
    ("attention_post_norm", "scale"): Rule("post_attention_layernorm.weight", "D"),
    ("ff_norm", "scale"): Rule("pre_feedforward_layernorm.weight", "D"),
    ("ff_post_norm", "scale"): Rule("post_feedforward_layernorm.weight", "D"),
}
HF_TOP: dict[Path, Rule] = {
    ("embedding",): Rule("embed_tokens.weight", "VD"),
    ("final_norm", "scale"): Rule("norm.weight", "D"),
}
FLAX_BLOCK: dict[Path, Rule] = {
    ("attention", "query", "weight"): Rule("attn/q_einsum.w", "NDH"),
    ("attention", "key", "weight"): Rule("attn/kv_einsum.w", "KDH", 0),
    ("attention", "value", "weight"): Rule("attn/kv_einsum.w", "KDH", 1),
    ("attention", "output", "weight"): Rule("attn/attn_vec_einsum.w", "NHD"),
    ("attention", "query_norm", "scale"): Rule("attn/_query_norm.scale", "H"),
    ("attention", "key_norm", "scale"): Rule("attn/_key_norm.scale", "H"),
    ("attention_norm", "scale"): Rule("pre_attention_norm.scale", "D"),
    ("attention_post_norm", "scale"): Rule("post_attention_norm.scale", "D"),
    ("ff_norm", "scale"): Rule("pre_ffw_norm.scale", "D"),
    ("ff_post_norm", "scale"): Rule("post_ffw_norm.scale", "D"),
    ("ff", "gate", "weight"): Rule("mlp/gating_einsum.w", "FD", 0),
    ("ff", "up", "weight"): Rule("mlp/gating_einsum.w", "FD", 1),
    ("ff", "down", "weight"): Rule("mlp/linear.w", "FD"),
}
FLAX_TOP: dict[Path, Rule] = {
    ("embedding",): Rule("embedder.input_embedding", "VD"),
    ("final_norm", "scale"): Rule("final_norm.scale", "D"),
}
UNTRANSPOSED_GATING: dict[Path, Rule] = {  # Flax's Gemma 2 2B, alone of the published ones
    ("ff", "gate", "weight"): Rule("mlp/gating_einsum.w", "DF", 0),
    ("ff", "up", "weight"): Rule("mlp/gating_einsum.w", "DF", 1),
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """One weight of one layer in a checkpoint: its tensor, the axes of the weight there and its place in the tensor."""

    name: str
    axes: str
    part: int | None


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of our tree and where its rows are kept; `letters` are its axes but for the L of a stack of layers.

    An array that is no stack (the embedding, the last norm) is kept in `stored[0]`.
    """

    path: Path
    letters: str
    stored: tuple[Stored, ...]
    stacked: bool = True


def sizes(config: model_config.GemmaConfig) -> dict[str, int]:
    """Length of every axis of a weight."""
    return {
        "V": config.vocab_size,
        "D": config.width,
        "F": config.ff_width,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
    }


def huggingface(config: model_config.GemmaConfig, letters: Any, *, prefix: str = "model.") -> list[Leaf]:
    """Every array of the tree whose letters are `letters`, with Hugging Face's names of its rows."""
    return list(_leaves(config, letters, HF_TOP, HF_BLOCK, top_prefix=prefix, layer_prefix=prefix + "layers.{}."))


def flax(config: model_config.GemmaConfig, letters: Any, *, transposed_gating: bool) -> list[Leaf]:
    """Every array of the tree whose letters are `letters`, with the Flax names of its rows."""
    block = FLAX_BLOCK if transposed_gating else FLAX_BLOCK | UNTRANSPOSED_GATING
    top_prefix, layer_prefix = "transformer/", "transformer/layer_{}/"
    return list(_leaves(config, letters, FLAX_TOP, block, top_prefix=top_prefix, layer_prefix=layer_prefix))


def _leaves(
    config: model_config.GemmaConfig,
    letters: Any,
    top: dict[Path, Rule],
    block: dict[Path, Rule],
    *,
    top_prefix: str,
    layer_prefix: str,
) -> Iterator[Leaf]:
    for path, rule in top.items():
        stored = (Stored(top_prefix + rule.name, rule.axes, rule.part),)
        yield Leaf(path, at(letters, path), stored, stacked=False)
    first = 0
    for i, (kinds, repeats) in enumerate(config.stacks):
        for place in range(len(kinds)):
            layers = range(first + place, first + len(kinds) * repeats, len(kinds))
            for path, rule in block.items():
                if not has(config, path):
                    continue
                whole = (f"stack_{i}", f"layer_{place}", *path)
                rows = (Stored(layer_prefix.format(layer) + rule.name, rule.axes, rule.part) for layer in layers)
                yield Leaf(whole, at(letters, whole).removeprefix("L"), tuple(rows))
        first += len(kinds) * repeats


def has(config: model_config.GemmaConfig, path: Path) -> bool:
    """Whether blocks of this model have the weight at `path`: only Gemma 3 normalises queries and keys."""
    return config.query_key_norm or path[1] not in ("query_norm", "key_norm")


def at(tree: Any, path: Sequence[str]) -> Any:
    """The node of a nested dict at `path`."""
    for name in path:
        tree = tree[name]
    return tree


def put(tree: Any, path: Sequence[str], value: Any) -> None:
    """Sets the node of a nested dict at `path`, making the dicts on the way."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def shape(axes: str, size: dict[str, int]) -> tuple[int, ...]:
    """Shape of a tensor with these axes."""
    return tuple(math.prod(size[letter] for letter in group) for group in _groups(axes))


def index(axes: str, letters: str, part: Sequence[slice], size: dict[str, int]) -> tuple[slice, ...]:
    """The slices of a tensor with axes `axes` that hold the part `part` of a weight with axes `letters`."""
    wanted = dict(zip(letters, part, strict=True))
    found = []
    for group in _groups(axes):
        assert all(wanted[letter].indices(size[letter]) == (0, size[letter], 1) for letter in group[1:]), (axes, part)
        inner = math.prod(size[letter] for letter in group[1:])
        start, stop, _ = wanted[group[0]].indices(size[group[0]])
        found.append(slice(start * inner, stop * inner))
    return tuple(found)


def to_ours(tensor: np.ndarray, axes: str, letters: str, size: dict[str, int]) -> np.ndarray:
    """A tensor with axes `axes` as a view with axes `letters`; of its first axis it may hold a part."""
    flat = "".join(_groups(axes))
    lengths = []
    for group, length in zip(_groups(axes), tensor.shape, strict=True):
        inner = [size[letter] for letter in group[1:]]
        lengths += [length // math.prod(inner), *inner]
    return tensor.reshape(lengths).transpose([flat.index(letter) for letter in letters])


def to_theirs(weight: np.ndarray, axes: str, letters: str) -> np.ndarray:
    """A weight with axes `letters` as a contiguous tensor with axes `axes`."""
    flat = "".join(_groups(axes))
    turned = weight.transpose([letters.index(letter) for letter in flat])
    lengths = dict(zip(flat, turned.shape, strict=True))
    return np.ascontiguousarray(turned).reshape(shape(axes, lengths))


def differences(
    expected: dict[str, tuple[int, ...]], found: dict[str, tuple[tuple[int, ...], str]], dtypes: Collection[str]
) -> list[str]:
    """What keeps tensors (name -> shape, dtype) from being those expected: all of one dtype, one of `dtypes`."""
    known = [name for name in expected if name in found]
    kinds = [found[name][1] for name in known]
    common = max(sorted(set(kinds)), key=kinds.count, default="")
    problems = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    for name, (shape, dtype) in ((name, found[name]) for name in known):
        if shape != expected[name]:
            problems.append(f"{name} has shape {shape}, expected {expected[name]}")
        if dtype not in dtypes:
            problems.append(f"{name} is {dtype}, expected one of {', '.join(dtypes)}")
        elif dtype != common:
            problems.append(f"{name} is {dtype}, the others are {common}")
    return problems


def refuse(folder: str | pathlib.Path, problems: Sequence[str]) -> None:
    """Raises ValueError with the first of `problems`, if there are any."""
    if problems:
        more = f"; and {len(problems) - NUM_SHOWN} more" if len(problems) > NUM_SHOWN else ""
        raise ValueError(f"{folder} does not hold this model: " + "; ".join(problems[:NUM_SHOWN]) + more)


def _groups(axes: str) -> list[str]:
    """ "(NH)D" -> ["NH", "D"]."""
    found, open_bracket = [], False
    for symbol in axes:
        if symbol in "()":
            open_bracket = symbol == "("
            found += [""] if open_bracket else []
        elif open_bracket:
            found[-1] += symbol
        else:
            found.append(symbol)
    return found
