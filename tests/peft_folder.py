"""Adapter folders made by hand, with the names and shapes PEFT gives the tensors of a tiny Gemma."""

import functools
import json
import pathlib

import numpy as np
import safetensors.numpy

from thinkfirst.models import gemma, hf_config

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
ATTENTION, FEED_FORWARD = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
ALL = ATTENTION + FEED_FORWARD


@functools.cache
def model_of(name):
    return gemma.Model(hf_config.read(GOLDEN / name))


def module(layer, projection, prefix="model."):
    return f"{prefix}layers.{layer}.{'self_attn' if projection in ATTENTION else 'mlp'}.{projection}"


def tensor(layer, projection, factor, prefix="model."):
    return f"base_model.model.{module(layer, projection, prefix)}.lora_{factor}.weight"


def factors(sizes, rank=2, *, projections=ALL, layers=None, ranks=None, prefix="model.", seed=0):
    """Random tensors of an adapter; `ranks` has those of projections that differ."""
    rng, found = np.random.default_rng(seed), {}
    heads, kv_heads = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    d, f = sizes.width, sizes.ff_width
    shapes = {"q_proj": (d, heads), "k_proj": (d, kv_heads), "v_proj": (d, kv_heads), "o_proj": (heads, d)}
    shapes |= {"gate_proj": (d, f), "up_proj": (d, f), "down_proj": (f, d)}
    for layer in range(sizes.num_layers) if layers is None else layers:
        for projection in projections:
            (into, out), r = shapes[projection], (ranks or {}).get(projection, rank)
            a, b = rng.standard_normal((r, into)), rng.standard_normal((out, r))
            found[tensor(layer, projection, "A", prefix)] = a.astype(np.float32)
            found[tensor(layer, projection, "B", prefix)] = b.astype(np.float32)
    return found


def write(folder, tensors, **settings):
    """A folder with these tensors and settings; None leaves a setting out."""
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": list(ALL), "bias": "none"} | settings
    said = {key: value for key, value in said.items() if value is not None}
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(said))
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder
