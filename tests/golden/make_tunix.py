"""Golden files of two tiny random Gemmas and their LoRA adapters, computed by Google's Tunix and Qwix.

`make golden` runs it in an environment of its own (oracle_tunix.txt: google-tunix 0.1.7, qwix 0.1.8, jax 0.10.2).
It writes tunix_gemma2.npz and tunix_gemma3.npz:

    transformer/layer_{}/...             weights under Flax's names: {} is the layer, which the leading axis counts
    lora/{}...                           factors under Qwix's names, rank 4, alpha 8; key and value share one A
    tokens_BT [3, 15], length_B [3]      three sequences, right-padded
    logit_TV, lora_TV [28, 40]           logits of the valid positions without and with the adapter, row after row
    next_logp_T, lora_next_logp_T [25]   log-prob at temperature 0.7 of every token but the first of a sequence
    greedy_BT [2, 30]                    what the rows cut to prompt_length_B tokens are continued with, adapter on
    gradient/...                         of minus the mean of lora_next_logp_T, for the factors in GRADIENTS

Tunix divides queries by sqrt(head_dim), whatever the model's query_pre_attn_scalar; its 1e-6 in the norms is fixed.
"""

import argparse
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx
from tunix.models.gemma import model as gemma2_lib
from tunix.models.gemma3 import model as gemma3_lib
from tunix.rl import common

HERE = pathlib.Path(__file__).resolve().parent
SEED = 1
LENGTHS = (15, 9, 4)
PROMPT_LENGTHS = (9, 4)
NEW_TOKENS = 30
CLEAR = 0.002  # between the best two logits of a greedy step: rounding must not decide
VARIED = 6  # different tokens in a continuation: a model that repeats itself tests little
TEMPERATURE = 0.7
SIZES = {"num_embed": 40, "embed_dim": 12, "hidden_dim": 10, "num_heads": 4, "head_dim": 8, "sliding_window_size": 6}
ADAPTED = ".*q_einsum|.*kv_einsum|.*attn_vec_einsum|.*gate_proj|.*up_proj|.*down_proj"
GRADIENTS = (
    "{}.attn.kv_einsum.w_lora_a",
    "{}.attn.kv_einsum.w_lora_b",
    "{}.attn.attn_vec_einsum.w_lora_a",
    "{}.mlp.down_proj.kernel_lora_b",
)


class UnclearError(ValueError):
    """A greedy continuation that rounding could change, or that says little: another seed is needed."""


def models() -> dict[str, nnx.Module]:
    """Fresh models; both end in a part of a period."""
    kinds = gemma2_lib.AttentionType
    gemma2 = gemma2_lib.ModelConfig(
        **SIZES,
        num_layers=3,
        num_kv_heads=2,
        attention_types=(kinds.LOCAL_SLIDING, kinds.GLOBAL, kinds.LOCAL_SLIDING),
        attn_logits_soft_cap=5.0,
        final_logit_softcap=6.0,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
    )
    gemma3 = gemma3_lib.ModelConfig(
        **SIZES,
        num_layers=7,
        num_kv_heads=1,
        local_base_frequency=10_000,
        global_base_frequency=1_000_000,
        global_scale_factor=8.0,
        param_dtype=jnp.float32,
    )
    return {
        "tunix_gemma2": gemma2_lib.Gemma(gemma2, rngs=nnx.Rngs(params=0)),
        "tunix_gemma3": gemma3_lib.Gemma3(gemma3, rngs=nnx.Rngs(params=0)),
    }


def randomize(model: nnx.Module, kind: type, seed: int, *, most: float = 0.4) -> None:
    """Random weights in place: in a fresh model the feed-forward, the norms and every B are zero."""
    leaves, tree = jax.tree.flatten_with_path(nnx.state(model, kind))
    rng = np.random.default_rng(seed)
    drawn = []
    for path, leaf in leaves:
        # A faint embedding and a loud last norm: what follows a token is not that token again, and soft caps bite.
        name = jax.tree_util.keystr(path)
        spread = 0.3 if "input_embedding" in name else most
        weight = spread * rng.standard_normal(leaf.shape) + ("final_norm" in name)
        drawn.append(jnp.asarray(weight, jnp.float32))
    nnx.update(model, jax.tree.unflatten(tree, drawn))


def logits(model: nnx.Module, tokens: jax.Array) -> jax.Array:
    mask = tokens != 0
    return model(tokens, common.build_positions_from_mask(mask), None, common.make_causal_attn_mask(mask))[0]


def next_logp(model: nnx.Module, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    """Log-probs as Tunix scores completions, each of the whole row after its first token."""
    graph, state = nnx.split(model)
    logp = common.compute_per_token_logps(
        graph, state, tokens[:, :1], tokens[:, 1:], 0, 1, stop_gradient=False, temperature=TEMPERATURE
    )
    return logp[valid[:, 1:]]


def greedy(model: nnx.Module, tokens: jax.Array) -> np.ndarray:
    """The likeliest tokens after each row's first PROMPT_LENGTHS, by a whole forward for each step."""
    graph, state = nnx.split(model)
    forward = jax.jit(lambda state, tokens: logits(nnx.merge(graph, state), tokens))
    rows, end = np.arange(len(PROMPT_LENGTHS)), np.array(PROMPT_LENGTHS)
    text = np.zeros((len(rows), max(PROMPT_LENGTHS) + NEW_TOKENS), np.int32)
    for row, length in enumerate(PROMPT_LENGTHS):
        text[row, :length] = tokens[row, :length]
    for step in range(NEW_TOKENS):
        last = np.array(forward(state, text))[rows, end + step - 1]
        last[:, 0] = -np.inf  # to Tunix id 0 is padding wherever it stands
        second, first = np.sort(last)[:, -2:].T
        if (first - second).min() < CLEAR:
            raise UnclearError(f"a greedy step is decided by {(first - second).min()}: take another seed")
        text[rows, end + step] = last.argmax(axis=1)
    found = np.stack([text[row, length : length + NEW_TOKENS] for row, length in enumerate(PROMPT_LENGTHS)])
    if min(len(np.unique(row)) for row in found) < VARIED:
        raise UnclearError(f"fewer than {VARIED} different tokens: take another seed")
    return found


def stacked(state: nnx.State) -> dict[str, np.ndarray]:
    """The arrays of a state by name: those of a layer, such as "{}.attn.q_einsum.w", as one array for all layers."""
    found: dict[str, list[np.ndarray]] = {}
    for path, leaf in nnx.to_flat_state(state):
        name = re.sub(r"^layers\.\d+", "{}", ".".join(map(str, path)))
        found.setdefault(name, []).append(np.asarray(leaf.get_value()))
    return {name: np.stack(rows) if name.startswith("{}") else rows[0] for name, rows in found.items()}


def flax_weights(model: nnx.Module, *, transposed_gating: bool) -> dict[str, np.ndarray]:
    """The weights as Gemma's Flax checkpoints hold them: gate and up are one tensor, which is transposed in Gemma 3."""
    held = stacked(nnx.state(model, nnx.Param))
    gate, up, down = (held.pop(f"{{}}.mlp.{name}_proj.kernel") for name in ("gate", "up", "down"))
    gating = np.stack([gate, up], axis=1)
    held["{}.mlp/gating_einsum.w"] = gating.swapaxes(2, 3) if transposed_gating else gating
    held["{}.mlp/linear.w"] = down
    slashes = {"{}.attn.": "layer_{}/attn/", "{}.": "layer_{}/", "post_attn_norm": "post_attention_norm"}
    named = {}
    for name, array in held.items():
        for old, new in slashes.items():
            name = name.replace(old, new)
        named[f"transformer/{name}"] = array
    return named


def values(name: str, model: nnx.Module, seed: int) -> dict[str, np.ndarray]:
    """What the tests compare with."""
    rng = np.random.default_rng(1)
    valid = jnp.arange(max(LENGTHS)) < jnp.array(LENGTHS)[:, None]
    tokens = jnp.asarray(rng.integers(3, SIZES["num_embed"], valid.shape), jnp.int32) * valid
    randomize(model, nnx.Param, seed)
    provider = qwix.LoraProvider(module_path=ADAPTED, rank=4, alpha=8.0)
    adapted = qwix.apply_lora_to_model(model, provider, **model.get_model_input(), rngs=nnx.Rngs(params=3, lora=3))
    randomize(adapted, nnx.LoRAParam, seed)
    continued = greedy(adapted, tokens)
    loss = lambda model: -next_logp(model, tokens, valid).mean()  # noqa: E731
    gradients = stacked(nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(adapted))
    found = {
        "tokens_BT": tokens,
        "length_B": np.array(LENGTHS, np.int32),
        "prompt_length_B": np.array(PROMPT_LENGTHS, np.int32),
        "logit_TV": logits(model, tokens)[valid],
        "lora_TV": logits(adapted, tokens)[valid],
        "next_logp_T": next_logp(model, tokens, valid),
        "lora_next_logp_T": next_logp(adapted, tokens, valid),
        "greedy_BT": continued,
        **flax_weights(model, transposed_gating=name == "tunix_gemma3"),
        **{f"lora/{name}": factor for name, factor in stacked(nnx.state(adapted, nnx.LoRAParam)).items()},
        **{f"gradient/{name}": gradients[name] for name in GRADIENTS},
    }
    return {key: np.asarray(array) for key, array in found.items()}


def first_clear(name: str, model: nnx.Module, first: int) -> tuple[int, dict[str, np.ndarray]]:
    """(seed, values) of the first seed, from `first` on, whose greedy continuations are clear."""
    for seed in itertools.count(first):
        try:
            return seed, values(name, model, seed)
        except UnclearError:
            continue
    raise AssertionError("unreachable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, model in models().items():
        seed, found = first_clear(name, model, args.seed)
        np.savez(args.out / f"{name}.npz", **found)
        moved = np.abs(found["lora_TV"] - found["logit_TV"]).max()
        spread, texts = found["logit_TV"].std(), found["greedy_BT"].tolist()
        print(f"{name}: seed {seed}, logits spread {spread:.2f}, LoRA moves them by up to {moved:.2f}, {texts}")


if __name__ == "__main__":
    main()
