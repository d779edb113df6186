import dataclasses
import json

import numpy as np

import tolerance
from thinkfirst.rl import batch, curriculum, grading, optimizer, stages, trainer
from thinkfirst.rl.data import mix, source
from thinkfirst.rl.rewards import composite

REWARDS = stages.RewardSchedule(
    trace=curriculum.Anneal(0.45, 0.25, 11),
    correctness=curriculum.Anneal(0.40, 0.60, 11),
    confidence=curriculum.Anneal(0.15, 0.15, 11),
    verbosity=curriculum.Anneal(0.05, 0.05, 11),
)
STAGE = stages.Grpo(
    optimizer=optimizer.OptimizerConfig(1e-3),
    phases=(curriculum.Phase("easy", 2, ("easy",)), curriculum.Phase("mixed", 0, ("medium", "hard"))),
    rewards=REWARDS,
    prompts=4,
)
TEXT = "<reasoning>Step 1: 9+9=18.</reasoning><answer>18</answer>"


def completion(text=TEXT, stopped=True):
    return batch.Completion(text, tuple((i, i + 1) for i in range(len(text))), (0.0,) * len(text), stopped)


def test_every_step_draws_problems_nobody_drew_before():
    problems = source.make(source.DataConfig(), 0)
    first = trainer.draw(problems, STAGE, STAGE.phases[0], 1)
    later = trainer.draw(problems, STAGE, STAGE.phases[1], 3)
    assert [problem.difficulty for problem in first] == ["easy"] * 4
    assert [problem.difficulty for problem in later] == ["medium", "hard"] * 2
    assert not {problem.id for problem in first} & {problem.id for problem in later}
    assert later == trainer.draw(problems, STAGE, STAGE.phases[1], 3)


def test_a_mix_is_drawn_whole_before_a_problem_comes_again(tmp_path):
    """Six easy and six hard problems, asked for in turn: a stride over one line would meet every second one."""
    levels = ("easy", "hard")
    rows = [{"question": f"{level} {i}", "answer": "1", "difficulty": level} for level in levels for i in range(6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = mix.Part("own", "jsonl", str(tmp_path / "a.jsonl"), eval=str(tmp_path / "b.jsonl"))
    (tmp_path / "b.jsonl").write_text('{"question": "held out", "answer": "1"}\n')
    problems = source.make(source.DataConfig(kind="mix", parts=(part,)), 0)
    phase = curriculum.Phase("both", until=0, difficulties=levels)
    stage = dataclasses.replace(STAGE, phases=(phase,))
    steps = [[problem.question for problem in trainer.draw(problems, stage, phase, step)] for step in range(1, 7)]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(question for step in epoch for question in step) == sorted(row["question"] for row in rows)
    assert steps[3:] == [[found.question for found in trainer.draw(problems, stage, phase, step)] for step in (4, 5, 6)]


def test_reward_metrics_under_the_names_of_trl():
    problem = batch.Problem("id", "Q", "18", difficulty="easy")
    weights = composite.RewardWeights()
    graded = [composite.grade(completion(text), problem, weights) for text in (TEXT, "no")]
    found = trainer.reward_metrics(graded, *grading.totals(graded, 2))
    assert found["rewards/correctness/mean"] == 0.5
    assert found["rewards/format/mean"] == 0.5
    assert found["frac_reward_zero_std"] == 0.0
    tolerance.assert_close(found["reward"], (graded[0].total + graded[1].total) / 2)
    tolerance.assert_close(found["reward_std"], (graded[0].total - graded[1].total) / np.sqrt(2))


def test_lengths_count_the_stop_token():
    found = trainer.length_metrics([completion("abc"), completion("abcd", stopped=False)], room=8)
    assert found["completions/mean_length"] == 4.0
    assert found["completions/clipped_ratio"] == 0.5
    assert found["completions/mean_terminated_length"] == 4.0
    assert found["padding_waste"] == 0.5


def test_columns_nobody_reaches_are_cut_off():
    rows = batch.Experience(
        tokens_BT=np.zeros((2, 300), int),
        prompt_length_B=np.array([120, 5]),
        completion_BT=np.zeros((2, 50), int),
        completion_length_B=np.array([14, 3]),
        old_logp_BT=np.zeros((2, 50)),
        floor_BT=np.zeros((2, 50)),
        advantage_B=np.zeros(2),
    )
    assert trainer.trimmed(rows).tokens_BT.shape == (2, 256)
