"""A run whose workdir is a URL, each of its calls on a machine with an empty disk, equals one that nobody stopped."""

import dataclasses
import json

import pytest

from thinkfirst.core import mesh, mirror, runtime
from thinkfirst.launch import recipes, show_work
from thinkfirst.rl import curriculum, loop, optimizer, pipeline, stages
from thinkfirst.rl.data import source

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

CLOCKS = ("step_time", "tokens_per_second", "time/", "rollout/time/", "rollout/tokens_per_second", "rollout/compiles")


def recipe():
    """Two steps of SFT, traces of its own, two steps of GRPO that are saved at their end."""
    rate = optimizer.OptimizerConfig(learning_rate=1e-2)
    lora = stages.LoraConfig(rank=2)
    return stages.RunConfig(
        recipe="toy",
        checkpoint=str(recipes.DEMO_BASE),
        data=source.DataConfig(held_out=3),
        mesh=mesh.MeshConfig(data=8),
        max_prompt_tokens=64,
        stages=(
            stages.Sft(rate, lora, steps=2, batch_size=8, num_tokens=128, save_every=1),
            stages.Merge(),
            stages.Grpo(
                optimizer=rate,
                lora=lora,
                phases=(curriculum.Phase("easy", 0, ("easy",)),),
                rewards=show_work.rewards(over=2),
                steps=2,
                prompts=4,
                group=2,
                max_new_tokens=8,
                save_every=2,
            ),
            stages.Evaluate("grpo", "evaluate_grpo", samples=1, max_new_tokens=8),
        ),
    )


def rows(workdir):
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if not key.startswith(CLOCKS)} for row in found]


def on_a_new_machine(workdir, url, **limits):
    workdir.mkdir()
    return pipeline.run(recipe(), workdir, runtime.Budget(**limits), copy=mirror.Mirror(url, workdir))


def test_a_run_that_changes_machines_equals_one_that_stays(tmp_path):
    url = f"file://{tmp_path}/bucket/run"
    for machine in range(3):
        with pytest.raises(loop.OutOfBudget):
            on_a_new_machine(tmp_path / f"machine {machine}", url, max_steps=1)
    results = on_a_new_machine(tmp_path / "last machine", url)
    straight = tmp_path / "straight"
    expected = pipeline.run(recipe(), straight, runtime.Budget())
    bucket = tmp_path / "bucket" / "run"
    for place in (bucket, tmp_path / "last machine"):
        assert rows(place) == rows(straight)
        assert (place / "completions.jsonl").read_bytes() == (straight / "completions.jsonl").read_bytes()
    assert results["evaluations"] == expected["evaluations"]
    assert json.loads((bucket / "final_results.json").read_text())["evaluations"] == expected["evaluations"]
    written = {path.name for path in bucket.iterdir()}
    assert written >= {"config.json", "progress.json", "report.html", "plots", "tensorboard", "OWNER.json"}
    assert not list(bucket.rglob("*.part"))
    assert sorted(path.name for path in (bucket / "checkpoints" / "grpo").iterdir()) == ["1", "2"]


def test_another_recipe_takes_over_nothing(tmp_path, monkeypatch):
    url = f"file://{tmp_path}/bucket/run"
    with pytest.raises(loop.OutOfBudget):
        on_a_new_machine(tmp_path / "one", url, max_steps=1)
    before = (tmp_path / "bucket" / "run" / "OWNER.json").read_bytes()
    other = dataclasses.replace(recipe(), seed=1)
    (tmp_path / "two").mkdir()
    copy = mirror.Mirror(url, tmp_path / "two")
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        pipeline.run(other, tmp_path / "two", runtime.Budget(), copy=copy)
    assert (tmp_path / "bucket" / "run" / "OWNER.json").read_bytes() == before
