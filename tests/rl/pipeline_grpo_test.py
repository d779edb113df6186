"""GRPO with all that a step may do, and with planted faults, through the pipeline: resumed, counted, ended."""

import dataclasses
import json
import math

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from thinkfirst.core import mesh, runtime
from thinkfirst.launch import recipes, show_work
from thinkfirst.rl import curriculum, guard, loading, loop, objective, optimizer, overlong, pipeline, stages
from thinkfirst.rl.data import source
from thinkfirst.rl.rewards import trace

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]

CLOCKS = ("step_time", "tokens_per_second", "rollout/tokens_per_second", "rollout/compiles")


def recipe(**settings):
    """GRPO alone, from the demo's base."""
    stage = stages.Grpo(
        optimizer=optimizer.OptimizerConfig(learning_rate=1e-2),
        lora=stages.LoraConfig(rank=2),
        phases=(curriculum.Phase("easy", 0, ("easy",)),),
        rewards=show_work.rewards(over=3),
        steps=3,
        prompts=8,
        group=2,
        max_new_tokens=32,
        save_every=1,
    )
    return stages.RunConfig(
        recipe="toy",
        checkpoint=str(recipes.DEMO_BASE),
        data=source.DataConfig(held_out=3),
        mesh=mesh.MeshConfig(data=4, fsdp=2),
        max_prompt_tokens=64,
        stages=(dataclasses.replace(stage, **settings),),
    )


def go(config, workdir, **limits):
    return pipeline.run(config, workdir, runtime.Budget(**limits))


def rows(workdir, name="metrics.jsonl"):
    lines = map(json.loads, (workdir / name).read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in CLOCKS and "time/" not in k} for row in lines]


def saved(workdir, step):
    folder = workdir / "checkpoints" / "grpo" / str(step) / "arrays"
    return jax.tree.leaves(ocp.StandardCheckpointer().restore(folder.absolute()))


def same(left, right):
    for mine, theirs in zip(left, right, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    return True


def test_a_step_with_everything_on_is_resumed_exactly(tmp_path):
    """Two packed iterations around the learner's own policy, refilling, punishment, filtering, entropy bonus, top-p."""
    config = recipe(
        num_iterations=2,
        row_tokens=192,
        top_p=0.95,
        refill_tokens=1200,
        overlong=overlong.OverlongConfig(drop=True, buffer=24, penalty=0.2),
        loss=objective.LossConfig(beta=0.0, correction="token_truncate", entropy_bonus=0.01),
    )
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    go(config, straight)
    for _ in range(2):
        with pytest.raises(loop.OutOfBudget):
            go(config, cut, max_steps=1)
    go(config, cut)
    assert rows(cut) == rows(straight)
    assert rows(cut, "completions.jsonl") == rows(straight, "completions.jsonl")
    assert same(saved(cut, 3), saved(straight, 3))
    written = rows(straight)
    assert any(row["refill/rounds"] > 1 for row in written)
    assert all(row["learner/rows"] == 8 for row in written)  # of sixteen samples, for eight devices
    assert all("kl" not in row for row in written)
    assert all("rewards/overlong/mean" in row for row in written)
    for row in written:
        ratios = [row[f"sampling/importance_sampling_ratio/{kind}"] for kind in ("min", "mean", "max")]
        np.testing.assert_allclose(ratios, 1.0, atol=1e-3)
    updates = sum(2 * (1 - row["skipped"]) for row in written)
    counts = {int(leaf) for leaf in saved(straight, 3) if np.asarray(leaf).dtype == np.int32}
    assert counts == {updates} and updates > 0


def test_a_reward_that_is_not_finite_ends_the_run_at_its_last_good_checkpoint(tmp_path, monkeypatch):
    """The rewards of step 2 and of all later ones are NaN; the first step's state is what stays."""
    config = recipe(max_bad_steps=2)
    with pytest.raises(loop.OutOfBudget):
        go(config, tmp_path, max_steps=1)
    good = saved(tmp_path, 1)
    whole = trace.score
    monkeypatch.setattr(trace, "score", lambda *_: math.nan)
    with pytest.raises(guard.TooManyBadSteps, match="step 3 was not finite: reward, advantage"):
        go(config, tmp_path)
    assert loop.newest(tmp_path, config.stages[0]) == 1
    assert same(saved(tmp_path, 1), good)
    assert [row["skipped/not_finite"] for row in rows(tmp_path)] == [0, 1, 1]
    with np.load(tmp_path / "bad_batches" / "step_2.npz") as kept:
        assert np.isnan(kept["reward_PG"]).all() and kept["rows/tokens_BT"].shape[0] == 16
    about = json.loads((tmp_path / "bad_batches" / "step_2.json").read_text())
    assert about["not_finite"][0] == "reward" and len(about["problems"]) == 8
    monkeypatch.setattr(trace, "score", whole)
    go(config, tmp_path)
    assert [row["skipped/not_finite"] for row in rows(tmp_path)] == [0, 0, 0]


def test_a_nan_in_a_weight_ends_the_run_and_is_named(tmp_path, monkeypatch):
    """The engine samples whatever it samples; nothing is learnt from it."""
    whole = loading.from_config

    def planted(*arguments, **settings):
        subject = whole(*arguments, **settings)
        one = lambda path, x: x.at[(0,) * x.ndim].set(np.nan) if "gate" in jax.tree_util.keystr(path) else x  # noqa: E731
        subject.params = jax.tree.map_with_path(one, subject.params)
        return subject

    monkeypatch.setattr(loading, "from_config", planted)
    with pytest.raises(guard.TooManyBadSteps, match="none was saved"):
        go(recipe(max_bad_steps=1), tmp_path)
    about = json.loads((tmp_path / "bad_batches" / "step_1.json").read_text())
    names = about["not_finite"]
    assert names[0].startswith("params/") and "gate" in names[0]
    assert {"reward", "old_logp", "logp", "ref_logp", "loss"} <= set(names)
    assert not any(name.startswith(("adapter", "optimizer")) for name in names)
