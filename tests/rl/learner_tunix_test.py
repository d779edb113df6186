"""Reference log-probs and advantages of a step of Tunix 0.1.7 on jax 0.12, of which only these were kept.

tests/golden/tunix_golden_step.npz holds Tunix's TrainExample of two prompts and four samples each at temperature 0.9.
Its Gemma 3 was drawn by a rule: 0.3 times normal numbers, a key for every tensor in the order of their names.  Its
reward was how many different tokens a completion has.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tunix_names
from thinkfirst.models import config, gemma
from thinkfirst.rl import advantage, batch, learner, packing

pytestmark = pytest.mark.slow
FILE = pathlib.Path(__file__).resolve().parents[1] / "golden" / "tunix_golden_step.npz"
GEMMA = config.GemmaConfig(
    generation=3, vocab_size=32, num_layers=6, width=16, ff_width=32, num_heads=4, num_kv_heads=1, head_dim=8, window=4,
    pattern=config.GEMMA3_PATTERN, query_scalar=8, global_rope_base=1_000_000.0, dtype="float32",
)  # fmt: skip
PAD = 0
# Shapes of a layer's tensors in the order of Tunix's names, with their names in Gemma's Flax checkpoints.
LAYER = {
    "attn/_key_norm.scale": (8,),
    "attn/_query_norm.scale": (8,),
    "attn/attn_vec_einsum.w": (4, 8, 16),
    "attn/kv_einsum.w": (2, 1, 16, 8),
    "attn/q_einsum.w": (4, 16, 8),
    "mlp/linear.w": (32, 16),
    "gate": (16, 32),
    "up": (16, 32),
    "post_attention_norm.scale": (16,),
    "post_ffw_norm.scale": (16,),
    "pre_attention_norm.scale": (16,),
    "pre_ffw_norm.scale": (16,),
}


@pytest.fixture(scope="module")
def golden():
    return {name.removeprefix("ex."): array for name, array in np.load(FILE).items()}


def params(model):
    shapes = {"embedder.input_embedding": (32, 16), "final_norm.scale": (16,)}
    shapes |= {f"layer_{layer}/{name}": shape for layer in range(6) for name, shape in LAYER.items()}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    drawn = {name: 0.3 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
    for layer in range(6):
        gate, up = (drawn.pop(f"layer_{layer}/{name}") for name in ("gate", "up"))
        drawn[f"layer_{layer}/mlp/gating_einsum.w"] = jnp.stack([gate.T, up.T])
    return tunix_names.params(model, {f"transformer/{name}": np.asarray(array) for name, array in drawn.items()})


@pytest.mark.long
def test_reference_log_probs(golden):
    """Of the rows without a padding token in the middle: Tunix masks it there, and we know no such thing."""
    prompt_BT, completion_BT = golden["prompt_ids"], golden["completion_ids"]
    length_B = (completion_BT != PAD).sum(axis=1)
    whole = (completion_BT != PAD).sum(axis=1) == [np.max(np.nonzero(row)[0]) + 1 for row in completion_BT]
    prompts = [row[row != PAD].tolist() for row in prompt_BT[::4]]
    none_BT = np.zeros((8, 8), np.float32)
    rollout = batch.Rollout(completion_BT, none_BT, none_BT, length_B, None)
    taught = batch.samples(prompts, rollout, golden["advantages"])
    rows = packing.experience(taught, packing.one_a_row(8, row_tokens=16, room=8), truncated=False)
    model = gemma.Model(GEMMA)
    score = learner.make_scorer(model, micro_batches=1)
    logp_BT = score(None, params(model), jax.tree.map(jnp.asarray, rows), jnp.float32(0.9))
    mask_BT = np.asarray(batch.length_mask(length_B, 8)) & whole[:, None]
    assert whole.sum() == 5
    np.testing.assert_allclose(logp_BT[mask_BT], golden["ref_per_token_logps"][mask_BT], rtol=0, atol=1e-5)


def test_advantages(golden):
    reward_PG = np.array([len(set(row.tolist())) for row in golden["completion_ids"]], np.float64).reshape(2, 4)
    np.testing.assert_allclose(advantage.group_relative(reward_PG).reshape(-1), golden["advantages"], rtol=0, atol=1e-6)
