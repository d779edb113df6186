import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tolerance
from thinkfirst.models import config, gemma, lora
from thinkfirst.rl import dpo, guard, packing

TINY = config.GemmaConfig(
    generation=3, vocab_size=40, num_layers=2, width=16, ff_width=16, num_heads=2, num_kv_heads=1, head_dim=8, window=4,
    pattern=("local", "global"), query_scalar=8, dtype="float32",
)  # fmt: skip
MODEL = gemma.Model(TINY)
PARAMS = MODEL.init(0)


def pairs(chosen, rejected):
    return dpo.Pairs(chosen_P=jnp.asarray(chosen), rejected_P=jnp.asarray(rejected))


def test_loss_worked_by_hand():
    """beta .1: gains 2 and -5, margins .2 and -.5; -log sigmoid: .5981389 and .9740770; mean .7861079."""
    value, margin_P = dpo.loss(
        pairs([-10.0, -9.0], [-12.0, -8.0]), pairs([-11.0, -7.0], [-11.0, -11.0]), beta=0.1, num_pairs=2
    )
    tolerance.assert_close(margin_P, np.float32([0.2, -0.5]))
    tolerance.assert_close(value, np.float32(0.7861079))


def test_a_policy_that_is_the_reference_has_loss_log_two_and_pulls_by_half_beta():
    same = pairs([-3.0], [-4.0])
    grads = jax.grad(lambda policy: dpo.loss(policy, same, beta=0.1, num_pairs=1)[0])(same)
    tolerance.assert_close(dpo.loss(same, same, beta=0.1, num_pairs=1)[0], np.float32(np.log(2)))
    tolerance.assert_close(grads.chosen_P, np.float32([-0.05]))
    tolerance.assert_close(grads.rejected_P, np.float32([0.05]))


def test_micro_batches_add_up():
    rng = np.random.default_rng(0)
    policy, reference = (pairs(*rng.normal(size=(2, 6)).astype(np.float32)) for _ in range(2))
    part = lambda x, rows: jax.tree.map(lambda leaf: leaf[rows], x)  # noqa: E731
    whole, _ = dpo.loss(policy, reference, beta=0.5, num_pairs=6)
    cut = [slice(0, 1), slice(1, 4), slice(4, 6)]
    parts = [dpo.loss(part(policy, rows), part(reference, rows), beta=0.5, num_pairs=6)[0] for rows in cut]
    tolerance.assert_close(sum(parts), whole)


def test_gradient_by_finite_differences():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):  # noqa: FBT003
        policy, reference = (pairs(*rng.normal(size=(2, 5))) for _ in range(2))
        value = lambda chosen_P: dpo.loss(  # noqa: E731
            dpo.Pairs(chosen_P, policy.rejected_P), reference, beta=0.7, num_pairs=5
        )[0]
        step = 1e-6 * np.eye(5)
        differences = [(value(policy.chosen_P + h) - value(policy.chosen_P - h)) / 2e-6 for h in step]
        np.testing.assert_allclose(jax.grad(value)(policy.chosen_P), np.array(differences), atol=1e-9)


def test_log_probs_of_sequences_are_sums_over_the_mask():
    logp_BT = jnp.array([[-1.0, -2.0, np.nan], [-3.0, np.nan, np.nan]])
    mask_BT = jnp.array([[True, True, False], [True, False, False]])
    tolerance.assert_close(dpo.sequence_logp(logp_BT, mask_BT), np.float32([-3.0, -3.0]))


def test_margins_far_apart_stay_finite():
    value, _ = dpo.loss(pairs([-900.0], [0.0]), pairs([0.0], [0.0]), beta=1.0, num_pairs=1)
    tolerance.assert_close(value, np.float32(900.0))


def rows():
    """Four prompts with a preferred and another completion, of unlike lengths."""
    rng = np.random.default_rng(0)
    ids = lambda count: rng.integers(2, 40, count).tolist()  # noqa: E731
    prompts = [ids(3), ids(1), ids(2), ids(4)]
    plan = packing.one_a_row(4, row_tokens=9, room=8)
    side = lambda *lengths: packing.lay_out([(p, ids(n)) for p, n in zip(prompts, lengths, strict=True)], plan)  # noqa: E731
    return dpo.Rows(side(2, 5, 1, 3), side(4, 1, 2, 5))


def descended(micro_batches=1, params=PARAMS, steps=1):
    """(adapter before and after, metrics) of plain gradient descent."""
    factors = jax.tree.map(lambda x: x + 0.02, lora.init(MODEL.adapted(), jax.random.key(1), rank=2, alpha=2.0))
    transform = optax.sgd(0.5)
    step = dpo.make_step(MODEL, transform, beta=0.3, micro_batches=micro_batches)
    before, state = jax.device_get(factors), (factors, transform.init(factors))
    for _ in range(steps):
        *state, metrics = step(*state, params, rows())
    return before, jax.device_get(state[0]), guard.split(jax.device_get(metrics))


@pytest.mark.long
def test_a_step_descends_the_loss_written_out():
    before, after, (metrics, wrong) = descended()

    def written_out(trained):
        total = 0.0
        sides = (rows().chosen, rows().rejected)
        for row in range(4):
            gains = []
            for side in sides:
                ids, columns = jnp.asarray(side.tokens_BT[row : row + 1]), side.column_BT[row][side.column_BT[row] > 0]
                found = []
                for factors in (trained, None):
                    hidden = MODEL.hidden(PARAMS, ids, segment_BT=jnp.ones_like(ids), adapter=factors)
                    logp = jax.nn.log_softmax(hidden @ PARAMS["embedding"].T)[0]
                    found.append(sum(logp[i - 1, ids[0, i]] for i in columns))
                gains.append(found[0] - found[1])
            total -= jax.nn.log_sigmoid(0.3 * (gains[0] - gains[1])) / 4
        return total

    value, grads = jax.jit(jax.value_and_grad(written_out))(before)
    assert wrong == ()
    tolerance.assert_close(np.float32(metrics["loss"]), value)
    jax.tree.map(lambda a, b, g: tolerance.assert_close(a, b - 0.5 * g), after, before, jax.device_get(grads))


@pytest.mark.long
def test_micro_batches_change_no_step_and_steps_rank_the_pairs():
    (_, whole, (metrics, _)), (_, parts, (cut, _)) = descended(), descended(micro_batches=2)
    jax.tree.map(tolerance.assert_close, parts, whole)
    for name, value in metrics.items():
        tolerance.assert_close(np.float32(cut[name]), np.float32(value))
    later = descended(steps=40)[2][0]
    assert later["loss"] < metrics["loss"] and later["margin"] > metrics["margin"]
    assert later["ranked_right"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embedding", "gate"])
def test_a_nan_in_a_weight_makes_no_step(name):
    one = lambda path, x: x.at[(0,) * x.ndim].set(jnp.nan) if name in jax.tree_util.keystr(path) else x  # noqa: E731
    before, after, (metrics, wrong) = descended(params=jax.tree.map_with_path(one, PARAMS))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert metrics["skipped/not_finite"] == 1 and wrong[:3] == ("ref_logp", "logp", "loss")
