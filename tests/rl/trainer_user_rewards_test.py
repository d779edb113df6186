"""A run with a reward of the user's own that fails: it goes on without that step, or stops; it learns from no 0."""

import json

import pytest

from thinkfirst.core import mesh, runtime
from thinkfirst.launch import recipes, show_work
from thinkfirst.rl import curriculum, optimizer, pipeline, stages
from thinkfirst.rl.data import source
from thinkfirst.rl.rewards import user

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MODULE = """
import time

def hangs_once(completions, problems, *, step, phase):
    if step == 1:
        time.sleep(600)
    return [len(completion.text) % 7 for completion in completions]

def raises(completions, problems, *, step, phase):
    raise KeyError("no such score")
"""


def recipe(function):
    """Two steps of GRPO from the demo's base, which gets every answer wrong in the same way."""
    return stages.RunConfig(
        recipe="toy",
        checkpoint=str(recipes.DEMO_BASE),
        data=source.DataConfig(held_out=3),
        mesh=mesh.MeshConfig(data=4, fsdp=2),
        max_prompt_tokens=64,
        stages=(
            stages.Grpo(
                optimizer=optimizer.OptimizerConfig(learning_rate=1e-2),
                lora=stages.LoraConfig(rank=2),
                phases=(curriculum.Phase("easy", 0, ("easy",)),),
                rewards=show_work.rewards(over=2),
                steps=2,
                prompts=8,
                group=2,
                max_new_tokens=16,
                user_rewards=(f"my_rewards_of_a_run:{function}",),
                user_reward_seconds=5.0,
                save_every=1,
            ),
        ),
    )


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_of_a_run.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "run"


@pytest.mark.long
def test_a_step_whose_reward_hangs_is_unknown_and_the_next_one_learns(workdir):
    pipeline.run(recipe("hangs_once"), workdir, runtime.Budget())
    first, second = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    assert first["frac_reward_unknown"] == 1.0 and first["reward"] is None and first["frac_reward_zero_std"] == 1.0
    assert first["rewards/correctness/mean"] is not None and first["rewards/hangs_once/mean"] is None
    assert (first["skipped"], second["skipped"]) == (1.0, 0.0)
    assert second["frac_reward_unknown"] == 0.0 and second["rewards/hangs_once/mean"] > 0
    rows = [json.loads(line) for line in (workdir / "completions.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows[:16]] == [None] * 16 and {row["advantage"] for row in rows[:16]} == {0.0}
    assert all(row["reward"] is not None for row in rows[16:])


def test_a_reward_that_raises_stops_the_run_and_nothing_is_learned(workdir):
    with pytest.raises(user.Failed, match=r"my_rewards_of_a_run:raises': it raised KeyError: 'no such score'"):
        pipeline.run(recipe("raises"), workdir, runtime.Budget())
    assert not (workdir / "metrics.jsonl").exists()


def test_a_reward_that_is_not_there_stops_the_run_before_its_first_step(workdir):
    with pytest.raises(user.Failed, match="module my_rewards_of_a_run has no nothing"):
        pipeline.run(recipe("nothing"), workdir, runtime.Budget())
