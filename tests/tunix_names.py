"""What Tunix and Qwix hold, in our trees: for tests that compare with the files of tests/golden/make_tunix*.py."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from thinkfirst.models import config, gemma, layout, lora

SIZES = {
    "vocab_size": 40,
    "width": 12,
    "ff_width": 10,
    "num_heads": 4,
    "head_dim": 8,
    "window": 6,
    "query_scalar": 8,  # Tunix knows no other than head_dim
    "dtype": "float32",
}
CONFIGS = {
    "tunix_gemma2": config.GemmaConfig(
        **SIZES,
        generation=2,
        num_layers=3,
        num_kv_heads=2,
        pattern=config.GEMMA2_PATTERN,
        attention_soft_cap=5.0,
        final_soft_cap=6.0,
    ),
    "tunix_gemma3": config.GemmaConfig(
        **SIZES,
        generation=3,
        num_layers=7,
        num_kv_heads=1,
        pattern=config.GEMMA3_PATTERN,
        global_rope_base=1_000_000.0,
        global_rope_factor=8.0,
    ),
}
# Our weight -> Qwix's name of it and, where two of ours are one of its, the place in B.
QWIX = {
    "query": ("attn.q_einsum.w", None),
    "key": ("attn.kv_einsum.w", 0),
    "value": ("attn.kv_einsum.w", 1),
    "output": ("attn.attn_vec_einsum.w", None),
    "gate": ("mlp.gate_proj.kernel", None),
    "up": ("mlp.up_proj.kernel", None),
    "down": ("mlp.down_proj.kernel", None),
}


def params(model: gemma.Model, golden: dict[str, np.ndarray]) -> gemma.Params:
    """Parameters from the tensors of a golden file that are named as in Gemma's Flax checkpoints."""
    stacks = {name: array for name, array in golden.items() if name.startswith("transformer/")}
    tensors = {name: array for name, array in stacks.items() if "{}" not in name}
    for name in stacks.keys() - tensors.keys():
        tensors |= {name.format(layer): row for layer, row in enumerate(stacks[name])}
    found, size = {}, layout.sizes(model.config)
    for leaf in _leaves(model):
        rows = [
            tensors[stored.name] if stored.part is None else tensors[stored.name][stored.part] for stored in leaf.stored
        ]
        rows = [
            layout.to_ours(row, stored.axes, leaf.letters, size) for row, stored in zip(rows, leaf.stored, strict=True)
        ]
        layout.put(found, leaf.path, jnp.asarray(np.stack(rows) if leaf.stacked else rows[0]))
    return found


def factors(golden: dict[str, np.ndarray], kind: str) -> dict[str, jax.Array]:
    """The arrays of a golden file that stand under `kind`, such as "lora": Qwix's factors by its names."""
    return {name.removeprefix(f"{kind}/"): jnp.asarray(golden[name]) for name in golden if name.startswith(f"{kind}/")}


def adapter(model: gemma.Model, held: dict[str, jax.Array], *, scale: float) -> lora.Adapter:
    """Qwix's factors, of all layers in one array, as an adapter of ours; what Qwix left alone has none."""
    tree, adapted = {}, model.adapted()
    for leaf in _leaves(model):
        if leaf.path[:-1] not in adapted:
            continue
        name, part = QWIX[leaf.path[-2]]
        if f"{{}}.{name}_lora_a" in held:
            layers = np.array([int(re.search(r"layer_(\d+)", stored.name)[1]) for stored in leaf.stored])
            a, b = (held[f"{{}}.{name}_lora_{half}"][layers] for half in "ab")
            layout.put(tree, leaf.path[:-1], {"a": a, "b": b if part is None else b[:, :, part]})
    return lora.Adapter(factors=tree, scale=scale)


def _leaves(model: gemma.Model) -> list[layout.Leaf]:
    gating = model.config.generation == 3
    return layout.flax(model.config, model.letters(), transposed_gating=gating)
