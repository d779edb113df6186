"""The gate in a run: a stage that hurts is given up and one that does not is kept; resumed, restored, reported."""

import json

import jax
import numpy as np
import pytest

from thinkfirst.core import runtime
from thinkfirst.launch import recipes
from thinkfirst.rl import evaluate, loop, optimizer, pipeline, stages
from thinkfirst.rl.data import source

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]


def recipe(rate):
    """Two stages of SFT from the demo's base; the second has the learning rate given."""
    lora = stages.LoraConfig(rank=2)
    look = stages.Evaluate("", "", samples=1, max_new_tokens=4)
    sft = lambda name, rate: stages.Sft(  # noqa: E731
        optimizer.OptimizerConfig(rate), lora, name=name, steps=2, batch_size=8, num_tokens=128, save_every=1
    )
    return stages.RunConfig(
        recipe="toy",
        checkpoint=str(recipes.DEMO_BASE),
        data=source.DataConfig(held_out=18),
        max_prompt_tokens=64,
        stages=(
            sft("first", 1e-4),
            stages.Merge("merge_first"),
            stages.labelled(look, "before"),
            sft("second", rate),
            stages.labelled(look, "after"),
            stages.Gate(),
            stages.Merge("merge_second"),
        ),
    )


@pytest.fixture
def scores(monkeypatch):
    """What held-out problems score before and after is planted: what the models write is no matter here."""
    planted = {"before": 1.0, "after": 1.0}
    whole = evaluate.evaluate

    def scored(subject, problems, stage, key, judge=None, *, check):
        found = whole(subject, problems, stage, key, judge, check=check)
        for row in found["by_problem"]:
            row["strict"] = planted[stage.label]
        return found

    monkeypatch.setattr(evaluate, "evaluate", scored)
    return planted


def params(subject):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(subject.params)]


def test_a_stage_that_hurts_leaves_nothing_behind(scores, tmp_path):
    """The same when the call ends between the stage and its gate; the model is the one of before, bit for bit."""
    scores["after"] = 0.0
    config = recipe(1e-2)
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    results = pipeline.run(config, straight, runtime.Budget())
    (gate,) = results["gates"]
    assert not gate["kept"] and gate["before"] == "before" and gate["metrics"]["score"]["p_worse"] < 1e-3
    with pytest.raises(loop.OutOfBudget):
        pipeline.run(config, cut, runtime.Budget(max_steps=3))
    assert pipeline.run(config, cut, runtime.Budget())["gates"] == results["gates"]
    ended, other = (pipeline.restore(config, workdir) for workdir in (straight, cut))
    assert ended.adapter is None and len(ended.merged) == 1  # of the first stage alone
    assert all(map(np.array_equal, params(ended), params(other)))
    page = (straight / "report.html").read_text()
    assert "given up" in page


def test_a_stage_that_does_not_is_kept_and_merged(scores, tmp_path):
    results = pipeline.run(recipe(1e-2), tmp_path, runtime.Budget())
    assert results["gates"][0]["kept"]
    assert len(pipeline.restore(recipe(1e-2), tmp_path).merged) == 2
    assert json.loads((tmp_path / "final_results.json").read_text())["gates"] == results["gates"]
    assert "kept" in (tmp_path / "report.html").read_text()
