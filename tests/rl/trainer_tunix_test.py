"""A whole GRPO step is Tunix's: sampled tokens and rewards in, updated adapter out, by config alone.

The golden files come from tests/golden/make_tunix_step.py, where Tunix's RLCluster and GRPOLearner take the steps;
`make parity` makes others, of other weights.  The step here is the trainer's own; only its engine is replaced, by one
that has sampled what Tunix's did.  Names of settings, and what no setting brings: docs/differences_from_tunix.md.
"""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tunix_names
from thinkfirst.core import mesh
from thinkfirst.models import gemma, lora
from thinkfirst.rl import batch, curriculum, learner, objective, optimizer, packing, policy, stages, trainer
from thinkfirst.rl.data import source
from thinkfirst.rl.rewards import parse, reward

pytestmark = pytest.mark.long
GOLDEN = pathlib.Path(os.environ.get("THINKFIRST_GOLDEN", pathlib.Path(__file__).resolve().parents[1] / "golden"))
SCALE = 3.0 / 2
STOP = 2
PRECISE = 1e-5
ADAM = optimizer.OptimizerConfig(1e-2, warmup=0.0, b1=0.9, b2=0.99, weight_decay=0.1, clip_norm=1e6)
UNUSED = stages.RewardSchedule(*[curriculum.Anneal(0.0, 0.0, 1)] * 4)
TUNIX = stages.Grpo(
    optimizer=ADAM,
    phases=(curriculum.Phase("all", 0, ("easy",)),),
    rewards=UNUSED,
    loss=objective.LossConfig(beta=0.04, kl="k1"),
    learn_stop=False,
    steps=1,
    prompts=2,
    group=4,
    max_new_tokens=8,
)
STAGES = {
    "tunix_step_gemma3": dataclasses.replace(TUNIX, temperature=0.9, micro_batches=2),
    "tunix_step_gemma2": dataclasses.replace(
        TUNIX,
        optimizer=dataclasses.replace(ADAM, clip_norm=0.1),
        loss=objective.LossConfig(beta=0.04, kl="k3", average="token", clip_high=0.28, dual_clip=3.0),
        num_iterations=2,
    ),
}


class Replayed:
    """An engine that has sampled the golden completions, and the stop token after those that ended."""

    def __init__(self, golden):
        self.metrics, self._golden = {}, golden

    def sample(self, params, adapter, prompts, sampling, key, *, group, **_):
        length_B, tokens_BT = self._golden["completion_length_B"], self._golden["completion_BT"].copy()
        logp_BT = self._golden["sampler_logp_BT"].copy()
        (stopped,) = np.nonzero(length_B < tokens_BT.shape[1])
        tokens_BT[stopped, length_B[stopped]], logp_BT[stopped, length_B[stopped]] = STOP, -1.0
        stopped_B = length_B < tokens_BT.shape[1]
        floor_BT = np.full(logp_BT.shape, -np.inf, np.float32)
        return batch.Rollout(tokens_BT, logp_BT, floor_BT, (length_B + stopped_B).astype(np.int32), stopped_B)

    def release(self):
        pass


class Subject(policy.Policy):
    """Golden prompts and completions in place of an engine and a tokenizer."""

    golden = None

    def prompts(self, problems):
        tokens_PT, length_P = (self.golden[name][::4] for name in ("prompt_BT", "prompt_length_B"))
        return batch.Prompts(tokens_PT, length_P.astype(np.int32), np.arange(len(length_P), dtype=np.uint32))

    def engine(self, room):
        return Replayed(self.golden)

    def completions(self, rollout):
        return [batch.Completion("", (), (), bool(stopped)) for stopped in rollout.stopped_B]


def subject_of(name):
    """Tunix's weights and what it sampled."""
    golden, layout = dict(np.load(GOLDEN / f"{name}.npz")), mesh.make(mesh.MeshConfig(), jax.devices()[:1])
    model = gemma.Model(tunix_names.CONFIGS[name.replace("step_", "")], layout)
    subject = Subject(model, None, layout, tunix_names.params(model, golden), (STOP,))
    subject.golden = golden
    return subject


@pytest.fixture(scope="module", params=list(STAGES))
def case(request):
    return STAGES[request.param], subject_of(request.param)


def adapter(subject, kind):
    """Qwix's factors under `kind` as an adapter of ours, its A of keys and values once for each."""
    held = tunix_names.factors(subject.golden, kind)
    return jax.tree.map(jnp.array, tunix_names.adapter(subject.model, held, scale=SCALE))


def taken(subject, stage):
    """(adapter after the step, optimiser state after it, metrics)"""
    transform = optimizer.make(stage.optimizer, stages.num_updates(stage))

    def grade(rows, *, step, phase):
        parsed = parse.parse(batch.Completion("", (), ()))
        return [reward.Graded(float(total), {}, parsed) for total in subject.golden["reward_B"]]

    problems = source.make(source.DataConfig(), 0)
    settings = {"remat": "none", "grade": grade}
    step = trainer.make_grpo_step(subject, stage, problems, jax.random.key(0), transform, **settings)
    before = adapter(subject, "before")
    (after, opt_state), metrics, rows = step((before, transform.init(before)), 1)
    assert metrics["fault"] is None and metrics["skipped"] == 0
    return jax.device_get((after, opt_state, {**metrics, "advantage_B": np.array([row["advantage"] for row in rows])}))


def distances(found, expected):
    """(path and half, largest difference) of all factors but the A of keys and values: Qwix has one for both."""
    expected = dict(lora.walk(expected.factors))
    for path, factors in lora.walk(found.factors):
        for half in "b" if path[-1] in ("key", "value") else "ab":
            yield (*path, half), float(np.abs(factors[half] - expected[path][half]).max())


@pytest.fixture(scope="module")
def step(case):
    stage, subject = case
    return taken(subject, stage)


def test_the_adapter_after_the_step(case, step):
    _, subject = case
    after, start = adapter(subject, "after"), adapter(subject, "before")
    off, moved = dict(distances(step[0], after)), dict(distances(start, after))
    assert max(off.values()) < PRECISE, off
    assert min(moved.values()) > 5e-3


def test_loss_advantages_and_clipping(case, step):
    stage, subject = case
    golden, metrics = subject.golden, step[2]
    np.testing.assert_allclose(metrics["advantage_B"], golden["advantage_B"], rtol=0, atol=PRECISE)
    assert abs(metrics["loss"] - golden["loss_U"].mean()) < PRECISE
    assert abs(metrics["clip_ratio/region_mean"] - golden["clip_share_U"].mean()) < PRECISE
    assert (metrics["clip_ratio/region_mean"] > 0.01) == (stage.num_iterations > 1)
    if stage.num_iterations > 1:  # else its losses are those of micro-batches
        assert abs(metrics["kl"] - golden["kl_U"].mean()) < PRECISE
        assert abs(metrics["grad_norm"] / golden["norm_U"].mean() - 1) < PRECISE


def test_gradients(case, step):
    """By Adam's first moment; the gradient of Qwix's one A of keys and values is the sum of those of our two."""
    _, subject = case
    ours, theirs = optax.tree.get(step[1], "mu"), adapter(subject, "moment")
    whole = optax.tree.norm(theirs)
    for name, value in distances(ours, theirs):
        assert value < PRECISE * whole, (name, value)
    expected = dict(lora.walk(theirs.factors))
    held = dict(lora.walk(ours.factors))
    for path in held:
        if path[-1] == "key":
            both = held[path]["a"] + held[(*path[:-1], "value")]["a"]
            assert np.abs(both - expected[path]["a"]).max() < PRECISE * whole


def test_log_probs_of_policy_and_reference(case):
    stage, subject = case
    golden = subject.golden
    prompts, sampled = subject.prompts(()), subject.engine(8).sample(None, None, None, None, None, group=4)
    taught = batch.samples(batch.unpadded(prompts), sampled, golden["advantage_B"])
    plan = packing.one_a_row(len(taught), row_tokens=prompts.tokens_PT.shape[1] + 8, room=8)
    rows = jax.tree.map(jnp.asarray, packing.experience(batch.without_stop(taught, sampled.stopped_B), plan))
    mask_BT = np.asarray(rows.rows.mask_BT)
    score = learner.make_scorer(subject.model, micro_batches=1)
    for name, added in (("sampler_logp_BT", adapter(subject, "before")), ("ref_logp_BT", None)):
        found = score(added, subject.params, rows, jnp.float32(stage.temperature))
        np.testing.assert_allclose(found[mask_BT], golden[name][mask_BT], rtol=PRECISE, atol=PRECISE, err_msg=name)


@pytest.mark.parametrize("ours", [{"learn_stop": True}, {"advantage": "grpo_ddof0"}], ids=lambda ours: next(iter(ours)))
def test_another_choice_is_another_step(ours):
    """Else the golden step would not tell our choice from Tunix's."""
    name = "tunix_step_gemma2"
    subject = subject_of(name)
    after, _, _ = taken(subject, dataclasses.replace(STAGES[name], **ours))
    assert max(value for _, value in distances(after, adapter(subject, "after"))) > 10 * PRECISE
