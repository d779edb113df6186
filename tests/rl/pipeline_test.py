"""The demo's stages at toy size: resume = continue, bit for bit, and what a workdir holds."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from thinkfirst.core import mesh, runtime
from thinkfirst.launch import recipes, show_work
from thinkfirst.rl import curriculum, loop, optimizer, pipeline, stages
from thinkfirst.rl.data import source

pytestmark = pytest.mark.timeout(900)  # every call compiles the whole path for eight devices

CLOCKS = ("step_time", "tokens_per_second", "time/rollout", "time/reward", "time/update")
CLOCKS += ("rollout/tokens_per_second", "rollout/compiles")  # compilations are counted since the start of a call


def recipe():
    """Two steps of SFT, three of GRPO, from the demo's base."""
    rate = optimizer.OptimizerConfig(learning_rate=1e-2)
    lora = stages.LoraConfig(rank=2)
    evaluate = lambda label: stages.Evaluate(label, f"evaluate_{label}", samples=2, max_new_tokens=6)  # noqa: E731
    return stages.RunConfig(
        recipe="toy",
        checkpoint=str(recipes.DEMO_BASE),
        data=source.DataConfig(held_out=3),
        mesh=mesh.MeshConfig(data=4, fsdp=2),
        max_prompt_tokens=64,
        stages=(
            evaluate("base"),
            stages.Sft(rate, lora, steps=2, batch_size=8, num_tokens=128, save_every=1),
            stages.Merge(),
            stages.Grpo(
                optimizer=rate,
                lora=lora,
                phases=(
                    curriculum.Phase("easy", until=2, difficulties=("easy",)),
                    curriculum.Phase("hard", 0, ("hard",)),
                ),
                rewards=show_work.rewards(over=3),
                steps=3,
                prompts=8,
                group=2,
                max_new_tokens=24,
                save_every=2,
            ),
            evaluate("grpo"),
        ),
    )


def rows(workdir, name):
    lines = map(json.loads, (workdir / name).read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in CLOCKS and "rollout/time/" not in k} for row in lines]


def final_adapter(workdir):
    folder = workdir / "checkpoints" / "grpo" / "3" / "arrays"
    import orbax.checkpoint as ocp

    return jax.tree.leaves(ocp.StandardCheckpointer().restore(folder.absolute()))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, pipeline.run(recipe(), workdir, runtime.Budget())


@pytest.mark.long
def test_a_resumed_run_equals_an_uninterrupted_one(straight, tmp_path):
    """One step a call: metrics, completions, adapter and evaluations are the same, bit for bit."""
    for _ in range(4):
        with pytest.raises(loop.OutOfBudget):
            pipeline.run(recipe(), tmp_path, runtime.Budget(max_steps=1))
    results = pipeline.run(recipe(), tmp_path, runtime.Budget())
    workdir, expected = straight
    for name in ("metrics.jsonl", "completions.jsonl"):
        assert rows(tmp_path, name) == rows(workdir, name)
    for mine, theirs in zip(final_adapter(tmp_path), final_adapter(workdir), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert results["evaluations"] == expected["evaluations"]


@pytest.mark.long
def test_a_run_killed_between_log_and_save_repeats_the_step_once(straight, tmp_path):
    """GRPO saves after steps 2 and 3; rows of a step that was lost are written again, not twice."""
    config = recipe()
    for _ in range(4):
        with pytest.raises(loop.OutOfBudget):
            pipeline.run(config, tmp_path, runtime.Budget(max_steps=1))
    newest = tmp_path / "checkpoints" / "grpo" / "2"
    newest.rename(tmp_path / "lost")  # as if the kill had come before the save
    pipeline.run(config, tmp_path, runtime.Budget())
    assert rows(tmp_path, "metrics.jsonl") == rows(straight[0], "metrics.jsonl")
    assert rows(tmp_path, "completions.jsonl") == rows(straight[0], "completions.jsonl")


@pytest.mark.long
def test_what_a_workdir_holds(straight):
    workdir, results = straight
    written = json.loads((workdir / "final_results.json").read_text())
    assert written == json.loads(json.dumps(results))
    assert [stage["name"] for stage in written["stages"]] == ["evaluate_base", "sft", "merge", "grpo", "evaluate_grpo"]
    assert [evaluation["stage"] for evaluation in written["evaluations"]] == ["base", "grpo"]
    keys = {"recipe", "seed", "model", "stages", "evaluations", "versions"}
    assert keys <= written.keys()
    wanted = {"stage", "problems", "accuracy", "accuracy_greedy", "accuracy_strict", "format_rate", "trace_score"}
    assert wanted | {"mean_tokens", "by_difficulty", "by_domain"} <= written["evaluations"][0].keys()
    for name in ("config.json", "report.html", "plots/learning_curves.png", "tensorboard", "checkpoints"):
        assert (workdir / name).exists()
    metrics = rows(workdir, "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5]
    assert {"reward", "kl", "entropy", "grad_norm", "learning_rate", "num_tokens", "clip_ratio/region_mean"} <= metrics[
        -1
    ].keys()
    assert metrics[-1]["sampling/sampling_logp_difference/max"] < 1e-4
    assert metrics[2]["clip_ratio/region_mean"] == 0.0
    assert len(rows(workdir, "completions.jsonl")) == 3 * 16


@pytest.mark.long
def test_a_finished_run_is_not_repeated(straight):
    workdir, results = straight
    before = (workdir / "metrics.jsonl").read_text()
    again = pipeline.run(recipe(), workdir, runtime.Budget())
    assert again["evaluations"] == results["evaluations"]
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.long
def test_other_settings_in_a_used_workdir_are_refused(straight):
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        pipeline.run(dataclasses.replace(recipe(), seed=1), straight[0], runtime.Budget())
