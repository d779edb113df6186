import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tolerance
from thinkfirst.models import config, gemma, lora
from thinkfirst.rl import sft

TINY = config.GemmaConfig(
    generation=3, vocab_size=40, num_layers=2, width=16, ff_width=16, num_heads=2, num_kv_heads=1, head_dim=8, window=4,
    pattern=("local", "global"), query_scalar=8, dtype="float32",
)  # fmt: skip
MODEL = gemma.Model(TINY)
PARAMS = MODEL.init(0)
PAIRS = [([3, 4, 5], [6, 7]), ([8], [9, 10, 11, 12])]


def test_collate_lays_rows_side_by_side():
    rows = sft.collate(PAIRS, 6)
    assert rows.tokens_BT.tolist() == [[3, 4, 5, 6, 7, 0], [8, 9, 10, 11, 12, 0]]
    assert (rows.prompt_length_B.tolist(), rows.length_B.tolist()) == ([3, 1], [5, 5])
    with pytest.raises(ValueError, match="exceed 4"):
        sft.collate(PAIRS, 4)


def test_loss_is_the_mean_over_completion_tokens_only():
    """Six completion tokens, written out with log_softmax."""
    value, count = sft.loss(MODEL, PARAMS, None, sft.collate(PAIRS, 6))
    total = 0.0
    for prompt, completion in PAIRS:
        ids = jnp.array([prompt + completion])
        hidden = MODEL.hidden(PARAMS, ids, segment_BT=jnp.ones_like(ids))
        logp = jax.nn.log_softmax(hidden @ PARAMS["embedding"].T)[0]
        total -= sum(logp[i - 1, ids[0, i]] for i in range(len(prompt), ids.shape[1]))
    assert int(count) == 6
    tolerance.assert_close(value, total / 6)


def test_padding_and_empty_rows_cannot_matter():
    value, _ = sft.loss(MODEL, PARAMS, None, sft.collate(PAIRS, 6))
    padded, _ = sft.loss(MODEL, PARAMS, None, sft.collate([*PAIRS, ([], [])], 11))
    tolerance.assert_close(padded, value)


@pytest.mark.slow
@pytest.mark.parametrize("base", [False, True])
def test_the_loss_falls_and_only_what_is_trained_moves(base):
    transform = optax.adam(1e-2)
    rows = sft.collate(PAIRS, 6)
    before = jax.tree.map(np.asarray, PARAMS)
    losses = []
    if base:
        step, state = sft.make_pretrain_step(MODEL, transform), jax.tree.map(jnp.copy, PARAMS)
        state = (state, transform.init(state))
        for _ in range(20):
            *state, metrics = step(*state, rows)
            losses.append(float(metrics["loss"]))
    else:
        step, adapter = (
            sft.make_step(MODEL, transform),
            lora.init(MODEL.adapted(), jax.random.key(0), rank=4, alpha=4.0),
        )
        state = (adapter, transform.init(adapter))
        for _ in range(20):
            *state, metrics = step(*state, PARAMS, rows)
            losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, before, PARAMS)
