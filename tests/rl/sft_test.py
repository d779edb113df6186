import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tolerance
from thinkfirst.models import config, gemma, lora
from thinkfirst.rl import guard, packing, sft

TINY = config.GemmaConfig(
    generation=3, vocab_size=40, num_layers=2, width=16, ff_width=16, num_heads=2, num_kv_heads=1, head_dim=8, window=4,
    pattern=("local", "global"), query_scalar=8, dtype="float32",
)  # fmt: skip
MODEL = gemma.Model(TINY)
PARAMS = MODEL.init(0)
PAIRS = [([3, 4, 5], [6, 7]), ([8], [9, 10, 11, 12])]


def rows_of(pairs, num_tokens):
    """One a row."""
    return packing.lay_out(pairs, packing.one_a_row(len(pairs), row_tokens=num_tokens, room=num_tokens - 1))


def test_loss_is_the_mean_over_completion_tokens_only():
    """Six completion tokens, written out with log_softmax."""
    value, count = sft.loss(MODEL, PARAMS, None, rows_of(PAIRS, 6))
    total = 0.0
    for prompt, completion in PAIRS:
        ids = jnp.array([prompt + completion])
        hidden = MODEL.hidden(PARAMS, ids, segment_BT=jnp.ones_like(ids))
        logp = jax.nn.log_softmax(hidden @ PARAMS["embedding"].T)[0]
        total -= sum(logp[i - 1, ids[0, i]] for i in range(len(prompt), ids.shape[1]))
    assert int(count) == 6
    tolerance.assert_close(value, total / 6)


def test_padding_and_empty_rows_cannot_matter():
    value, _ = sft.loss(MODEL, PARAMS, None, rows_of(PAIRS, 6))
    padded, _ = sft.loss(MODEL, PARAMS, None, rows_of([*PAIRS, ([], [])], 11))
    tolerance.assert_close(padded, value)


@pytest.mark.slow
@pytest.mark.parametrize("base", [False, True])
def test_the_loss_falls_and_only_what_is_trained_moves(base):
    transform = optax.adam(1e-2)
    rows = rows_of(PAIRS, 6)
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


def stepped(pairs, *, micro_batches=1, params=PARAMS, plan=None):
    """(adapter before, adapter after, metrics) of a step of plain gradient descent, one a row of six if not planned."""
    factors = jax.tree.map(lambda x: x + 0.02, lora.init(MODEL.adapted(), jax.random.key(1), rank=2, alpha=2.0))
    transform, before = optax.sgd(0.5), jax.device_get(factors)
    step = sft.make_step(MODEL, transform, micro_batches=micro_batches)
    rows = packing.lay_out(pairs, plan) if plan else rows_of(pairs, 6)
    after, _, metrics = step(factors, transform.init(factors), params, rows)
    return before, jax.device_get(after), guard.split(jax.device_get(metrics))


@pytest.mark.slow
def test_micro_batches_change_no_step():
    """Their token counts differ, and one has an empty row: the mean is that of all tokens."""
    rows = [*PAIRS, ([5], [6]), ([], [])]
    (_, whole, (metrics, _)), (_, parts, (cut, _)) = stepped(rows), stepped(rows, micro_batches=2)
    jax.tree.map(tolerance.assert_close, parts, whole)
    for name, value in metrics.items():
        tolerance.assert_close(np.float32(cut[name]), np.float32(value))
    assert metrics["completion_tokens"] == 7
    tolerance.assert_close(
        np.float32(metrics["loss"]), sft.loss(MODEL, PARAMS, stepped(rows)[0], rows_of(rows, 6))[0]
    )


@pytest.mark.slow
def test_packing_changes_no_step():
    """Four demonstrations, one of them empty, in two rows of seven tokens and in two micro-batches."""
    pairs = [*PAIRS, ([5], [6]), ([], [])]
    plan = packing.packed(pairs, row_tokens=7, num_shards=1, micro_batches=2)
    assert sorted(map(len, plan.rows)) == [1, 2]
    (_, whole, (metrics, _)), (_, packed, (found, _)) = stepped(pairs), stepped(pairs, plan=plan, micro_batches=2)
    jax.tree.map(tolerance.assert_close, packed, whole)
    for name, value in metrics.items():
        tolerance.assert_close(np.float32(found[name]), np.float32(value))


def test_a_completion_without_a_prompt_begins_with_its_second_token():
    """Nothing predicts the first, whether it begins a row or follows another sample."""
    pairs = [([], [6, 7, 8]), ([], [9, 10])]
    packed = packing.lay_out(pairs, packing.Plan(((0, 1),), 6, 5))
    assert packed.column_BT.tolist() == [[1, 2, 4, 0, 0]]
    tolerance.assert_close(*(sft.loss(MODEL, PARAMS, None, rows)[0] for rows in (packed, rows_of(pairs, 6))))


@pytest.mark.slow
def test_a_nan_in_a_weight_and_rows_without_completion_make_no_step():
    broken = {**PARAMS, "embedding": PARAMS["embedding"].at[6, 0].set(jnp.nan)}
    before, after, (metrics, wrong) = stepped(PAIRS, params=broken)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert wrong[:2] == ("logp", "loss") and metrics["skipped/not_finite"] == 1
    before, after, (metrics, wrong) = stepped([([3, 4], []), ([], [])])
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert wrong == () and metrics["skipped/no_signal"] == 1
