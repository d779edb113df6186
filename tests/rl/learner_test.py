import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tolerance
from thinkfirst.core import mesh, sharding
from thinkfirst.models import config, gemma, lora
from thinkfirst.rl import batch, learner, loss, objective, packing

TINY = config.GemmaConfig(
    generation=2, vocab_size=48, num_layers=2, width=16, ff_width=16, num_heads=2, num_kv_heads=1, head_dim=8, window=5,
    pattern=("local", "global"), query_scalar=8, final_soft_cap=8.0, attention_soft_cap=9.0, dtype="float32",
)  # fmt: skip
MODEL = gemma.Model(TINY)
PARAMS = MODEL.init(0)


def adapter():
    return jax.tree.map(lambda x: x + 0.02, lora.init(MODEL.adapted(), jax.random.key(1), rank=2, alpha=2.0))


ONE_A_ROW = packing.one_a_row(8, row_tokens=14, room=8)


@functools.cache
def samples():
    """Eight samples; old log-probs are the policy's own, moved a little."""
    rng = np.random.default_rng(0)
    prompt_length, length = rng.integers(2, 7, 8), rng.integers(1, 9, 8)
    prompt, completion = rng.integers(2, 48, (8, 6)), rng.integers(2, 48, (8, 8))
    value, noise_BT = rng.normal(size=8), 0.1 * rng.normal(size=(8, 8)).astype("float32")
    drawn = [
        batch.Sample(
            prompt=prompt[i, : prompt_length[i]].tolist(),
            completion=completion[i, : length[i]],
            logp=np.zeros(length[i], np.float32),
            floor=np.full(length[i], -np.inf, np.float32),
            advantage=float(value[i]),
        )
        for i in range(8)
    ]
    logp_BT, _ = learner.completion_logprob(MODEL, PARAMS, adapter(), packing.experience(drawn, ONE_A_ROW).rows)
    moved_BT = np.asarray(logp_BT) + noise_BT
    return tuple(dataclasses.replace(drawn[i], logp=moved_BT[i, : length[i]]) for i in range(8))


def experience(advantage=None, plan=ONE_A_ROW):
    given = [sample.advantage for sample in samples()] if advantage is None else advantage
    drawn = [dataclasses.replace(sample, advantage=float(x)) for sample, x in zip(samples(), given, strict=True)]
    return jax.tree.map(jnp.asarray, packing.experience(drawn, plan))


def packed(num_shards=1, micro_batches=1, row_tokens=28):
    """The plan of the eight samples, packed."""
    pairs = [(sample.prompt, sample.completion) for sample in samples()]
    return packing.packed(pairs, row_tokens=row_tokens, num_shards=num_shards, micro_batches=micro_batches)


def update(rows, **settings):
    """(adapter after, metrics): plain gradient descent, so that the adapter shows the gradient."""
    (after, _), metrics = taken(rows, **settings)
    return after, metrics


def taken(rows, *, layout=None, micro_batches=1, remat="none", steps=1, **settings):
    """((adapter after, optimiser state with the last gradient), metrics)."""
    transform, model, params, factors = optax.sgd(1.0, momentum=0.0), MODEL, PARAMS, adapter()
    if layout is not None:
        model = gemma.Model(TINY, layout)
        params = jax.device_put(PARAMS, sharding.parameters(model.letters(), PARAMS, layout))
        factors = jax.device_put(factors, sharding.parameters(lora.letters(model.adapted(), factors), factors, layout))
        rows = jax.device_put(rows, sharding.rows(layout))
    config = objective.LossConfig(**{"beta": 0.1, "max_tokens": 8, **settings})
    step = learner.make_step(model, transform, config, micro_batches=micro_batches, remat=remat)
    state, metrics = (factors, transform.init(factors)), {}
    for _ in range(steps):
        *state, metrics = step(*state, params, rows, jnp.float32(1.0))
    return jax.device_get(state), jax.device_get(metrics)


def gap(left, right):
    return max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


@pytest.mark.long
@pytest.mark.parametrize(
    "cut", [{"micro_batches": 2}, {"micro_batches": 8}, {"micro_batches": 4, "remat": "attention"}]
)
def test_micro_batches_and_remat_change_nothing(cut):
    rows = experience()
    whole, parts = update(rows), update(rows, **cut)
    assert gap(whole[0], parts[0]) < 2e-6
    for name, value in whole[1].items():
        tolerance.assert_close(parts[1][name], value)


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "dapo", "top_entropy": 0.3, "entropy_bonus": 0.05},
        {"objective": "dr_grpo", "correction": "sequence_truncate"},
        {"objective": "gspo", "kl": "k3_k2"},
    ],
    ids=lambda settings: settings["objective"],
)
def test_micro_batches_and_packing_change_nothing_in_other_objectives(settings):
    whole = update(experience(), **settings)
    parts = update(experience(plan=packed(1, 2)), micro_batches=2, **settings)
    assert gap(whole[0], parts[0]) < 2e-6
    assert gap(whole[0], update(experience())[0]) > 1e-4  # another objective, another step
    for name, value in whole[1].items():
        tolerance.assert_close(parts[1][name], value)


@pytest.mark.slow
def test_a_correction_takes_the_learners_own_policy_for_the_old_one():
    """The stored log-probs are off by much: uncorrected that is clipped, corrected it is weighed and nothing clips."""
    rows = experience()
    rows = rows.replace(old_logp_BT=rows.old_logp_BT - 1.0)
    assert update(rows)[1]["clip_ratio/region_mean"] > 0.2
    metrics = update(rows, beta=0.0, correction="token_truncate", correction_high=1.5)[1]
    assert metrics["clip_ratio/region_mean"] == 0
    assert metrics["sampling/sampling_logp_difference/mean"] > 0.5
    # Every ratio is about e, so every weight 1.5.
    for kind in ("min", "mean", "max"):
        tolerance.assert_close(metrics[f"sampling/importance_sampling_ratio/{kind}"], np.float32(1.5))
    mean = np.mean([sample.advantage for sample in samples()])
    tolerance.assert_close(metrics["policy_loss"], np.float32(-1.5 * mean))


@pytest.mark.long
def test_old_log_probs_stay_while_the_policy_moves():
    """With the sampler's beside them, the stored ones are what the trust region and the correction are about."""
    rows = experience()
    stored = rows.replace(sampler_logp_BT=rows.old_logp_BT, old_logp_BT=rows.old_logp_BT - 1.0)
    metrics = update(stored, beta=0.0, correction="token_truncate")[1]
    assert metrics["clip_ratio/region_mean"] > 0.2
    tolerance.assert_close(metrics["sampling/importance_sampling_ratio/mean"], np.float32(np.exp(-1)))
    assert metrics["sampling/sampling_logp_difference/max"] < 0.5
    # The learner's own policy before the first update: there the first of several iterations is the only one.
    own = learner.make_scorer(MODEL, micro_batches=2)(adapter(), PARAMS, rows, jnp.float32(1.0))
    scored = rows.replace(sampler_logp_BT=rows.old_logp_BT, old_logp_BT=own)
    assert gap(update(scored, correction="token_mask")[0], update(rows, correction="token_mask")[0]) < 1e-7
    moved = update(scored, correction="token_mask", steps=3)[0]
    assert gap(moved, update(rows, correction="token_mask", steps=3)[0]) > 1e-5


def test_scores_of_micro_batches_are_in_the_order_of_the_rows():
    rows = experience()
    whole, parts = (
        learner.make_scorer(MODEL, micro_batches=count)(adapter(), PARAMS, rows, jnp.float32(1.0)) for count in (1, 4)
    )
    tolerance.assert_close(parts, whole)


def passes(monkeypatch, **settings):
    """What every pass over the rows was asked for while the step was traced: (with an adapter, entropy gradient)."""
    whole, seen = learner.completion_logprob, []

    def noted(model, params, factors, rows, **asked):
        seen.append((factors is not None, asked.get("entropy_gradient", False)))
        return whole(model, params, factors, rows, **asked)

    monkeypatch.setattr(learner, "completion_logprob", noted)
    rows = experience()
    seen.clear()
    return update(rows, **settings)[1], set(seen)


def test_without_a_kl_term_the_reference_is_not_run(monkeypatch):
    metrics, seen = passes(monkeypatch, beta=0.0)
    assert seen == {(True, False)} and "kl" not in metrics


def test_the_bonus_alone_asks_for_the_gradient_of_the_entropy(monkeypatch):
    metrics, seen = passes(monkeypatch, entropy_bonus=0.1)
    assert seen == {(True, True), (False, False)} and metrics["kl"] > 0


@pytest.mark.slow
def test_floors_that_cut_nothing_off_may_be_left_out():
    rows = experience()
    with_floors, without = update(rows), update(rows.replace(floor_BT=None))
    assert gap(with_floors[0], without[0]) < 1e-7


def part(left, right):
    """Length of the difference of two trees as a part of the length of the second."""
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    return float(np.linalg.norm(flat(left) - flat(right)) / np.linalg.norm(flat(right)))


@functools.cache
def row_by_row():
    """Eight micro-batches on one device."""
    return taken(experience(), micro_batches=8)


@pytest.mark.long
@pytest.mark.parametrize(
    ("data", "fsdp", "tensor", "micro_batches", "packs"),
    [
        (8, 1, 1, 1, False),
        (1, 8, 1, 1, False),
        (4, 1, 1, 2, False),
        (1, 1, 2, 8, False),
        (1, 1, 1, 4, True),
        (8, 1, 1, 1, True),
        (1, 2, 1, 4, True),
        (2, 2, 2, 2, True),
    ],
)
def test_no_mesh_no_micro_batching_and_no_packing_changes_anything(data, fsdp, tensor, micro_batches, packs):
    """1x8 = 8x1 = 4x2 = packed: rows over data and fsdp, heads and vocabulary over tensor, to a millionth."""
    devices = jax.devices()[: data * fsdp * tensor]
    layout = mesh.make(mesh.MeshConfig(data=data, fsdp=fsdp, tensor=tensor), devices)
    rows = experience(plan=packed(data * fsdp, micro_batches) if packs else ONE_A_ROW)
    (one, one_state), expected = row_by_row()
    (many, many_state), metrics = taken(rows, layout=layout, micro_batches=micro_batches)
    assert abs(metrics["loss"] / expected["loss"] - 1) < 1e-6
    assert part(many_state, one_state) < 1e-6  # the gradient
    assert part(many, one) < 1e-6
    assert gap(many, one) < 2e-6
    for name, value in expected.items():
        tolerance.assert_close(metrics[name], value)


def ignoring(name, monkeypatch):
    """Plants what packing must not be: samples that see one another, or means and counts of rows or micro-batches."""
    whole = {"hidden": gemma.Model.hidden, "step": objective.make}
    if name == "segments":
        alike = lambda *given, segment_BT, **how: whole["hidden"](*given, segment_BT=jnp.ones_like(segment_BT), **how)  # noqa: E731
        monkeypatch.setattr(gemma.Model, "hidden", alike)
    elif name == "lengths":
        of_rows = lambda sample_BT: jnp.maximum((sample_BT > 0).sum(axis=1, keepdims=True, dtype=jnp.float32), 1.0)  # noqa: E731
        monkeypatch.setattr(loss, "sample_count", of_rows)
    else:
        own = lambda sample_BT, num_samples: loss.constant_weight(sample_BT, sample_BT.shape[0], 1)  # noqa: E731
        monkeypatch.setattr(loss, "sequence_mean_weight", own)


@pytest.mark.long
@pytest.mark.parametrize("name", ["segments", "lengths", "totals"])
def test_the_comparison_notices_what_packing_must_not_be(name, monkeypatch):
    plan = packed(1, 2)
    assert max(map(len, plan.rows)) > 1
    ignoring(name, monkeypatch)
    (_, one_state), expected = row_by_row()
    (_, many_state), metrics = taken(experience(plan=plan), micro_batches=2)
    assert abs(metrics["loss"] / expected["loss"] - 1) > 1e-3
    assert part(many_state, one_state) > 1e-3


def test_groups_without_signal_make_no_step():
    changed, metrics = update(experience(advantage=np.zeros(8)))
    assert gap(changed, adapter()) == 0
    assert metrics["skipped"] == 1


def test_a_gradient_that_is_not_finite_makes_no_step():
    changed, metrics = update(experience(advantage=np.array([np.inf] + [1.0] * 7)))
    assert gap(changed, adapter()) == 0
    assert metrics["skipped"] == 1


@pytest.mark.long
def test_gradient_is_that_of_the_formula():
    """One micro-batch against the loss written out with log_softmax over whole logits."""
    drawn = samples()

    def written_out(trained):
        total = 0.0
        for sample in drawn:
            ids, begin, logp = jnp.array([[*sample.prompt, *sample.completion]]), len(sample.prompt), {}
            for name, factors in (("policy", trained), ("reference", None)):
                hidden = MODEL.hidden(PARAMS, ids, segment_BT=jnp.ones_like(ids), adapter=factors)
                logp[name] = jax.nn.log_softmax(8.0 * jnp.tanh(hidden @ PARAMS["embedding"].T / 8.0))
            for t, token in enumerate(sample.completion):
                mine, ref = (logp[name][0, begin + t - 1, token] for name in ("policy", "reference"))
                ratio = jnp.exp(mine - sample.logp[t])
                gain = jnp.minimum(ratio * sample.advantage, jnp.clip(ratio, 0.8, 1.2) * sample.advantage)
                total += (-gain + 0.1 * (jnp.exp(ref - mine) - (ref - mine) - 1)) / (len(sample.completion) * 8)
        return total

    value, grads = jax.jit(jax.value_and_grad(written_out))(adapter())
    changed, metrics = update(experience())
    tolerance.assert_close(metrics["loss"], value)
    assert gap(changed, jax.tree.map(lambda x, g: x - g, adapter(), grads)) < 2e-6


@pytest.mark.slow
def test_the_stop_token_has_a_gradient():
    """Only the last token of each row counts: the adapter still moves."""
    rows = experience().rows
    last = rows.mask_BT & ~jnp.pad(rows.mask_BT[:, 1:], ((0, 0), (0, 1)))

    def total(trained):
        logp_BT, _ = learner.completion_logprob(MODEL, PARAMS, trained, rows)
        return jnp.where(last, logp_BT, 0.0).sum()

    assert gap(jax.jit(jax.grad(total))(adapter()), jax.tree.map(jnp.zeros_like, adapter())) > 0


def test_reference_is_the_base_with_the_adapter_off():
    """A fresh adapter is the reference: KL exactly 0."""
    transform = optax.sgd(0.0)
    step = learner.make_step(MODEL, transform, objective.LossConfig(), micro_batches=1, remat="none")
    fresh = lora.init(MODEL.adapted(), jax.random.key(1), rank=2, alpha=2.0)
    metrics = step(fresh, transform.init(fresh), PARAMS, experience(), jnp.float32(1.0))[2]
    assert float(metrics["kl"]) == 0.0


def test_rows_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="8 rows cannot be cut into 3"):
        update(experience(), micro_batches=3)
