import dataclasses

import numpy as np

import tolerance
from thinkfirst.rl import batch, curriculum, optimizer, overlong, samples, stages, trainer
from thinkfirst.rl.rewards import composite, parse

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


def test_reward_metrics_under_the_names_of_trl():
    problem = batch.Problem("id", "Q", "18", difficulty="easy")
    weights = composite.RewardWeights()
    graded = [composite.grade(completion(text), problem, weights) for text in (TEXT, "no")]
    found = trainer.reward_metrics(graded, np.array([[grade.total for grade in graded]]), np.ones((1, 2), bool))
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


def test_rewards_that_are_unknown_are_no_zeros():
    problem, weights = batch.Problem("id", "Q", "18", difficulty="easy"), composite.RewardWeights()
    known = composite.grade(completion(), problem, weights)
    unknown = composite.Graded(None, {"trace": 1.0, "correctness": None}, known.parsed)
    found = trainer.reward_metrics([known, unknown], np.array([[known.total, 0.0]]), np.array([[True, False]]))
    assert found["reward"] == known.total and found["rewards/correctness/mean"] == 1.0
    assert np.isnan(found["reward_std"]) and np.isnan(found["rewards/correctness/std"])
    assert found["frac_reward_zero_std"] == 1.0 and found["frac_reward_unknown"] == 0.5


def test_rows_of_completions_say_the_domain():
    rows = trainer.completion_rows([group((1.0, None))], np.float32([[0.5, 0.0]]))
    assert [(row["domain"], row["reward"], row["advantage"]) for row in rows] == [
        ("math", 1.0, 0.5),
        ("math", None, 0.0),
    ]


def test_metrics_of_iterations_are_put_together_by_their_names():
    found = trainer.over_iterations(
        [
            {"loss": 1.0, "clip_ratio/low_min": 0.1, "clip_ratio/high_max": 0.2, "a/max": 5.0, "finite/loss": True},
            {"loss": 2.0, "clip_ratio/low_min": 0.3, "clip_ratio/high_max": 0.1, "a/max": 4.0, "finite/loss": False},
        ]
    )
    assert found == {
        "loss": 1.5, "clip_ratio/low_min": 0.1, "clip_ratio/high_max": 0.2, "a/max": 5.0, "finite/loss": False
    }  # fmt: skip


def group(rewards, lengths=(2, 3), stopped=(True, False)):
    graded = tuple(composite.Graded(reward, {}, parse.parse(completion(""))) for reward in rewards)
    rollout = batch.Rollout(
        tokens_BT=np.full((2, 4), 7, np.int32),
        logp_BT=np.full((2, 4), -1, np.float32),
        floor_BT=np.zeros((2, 4), np.float32),
        length_B=np.array(lengths),
        stopped_B=np.array(stopped),
    )
    return samples.Group(batch.Problem("id", "Q", "18"), (5, 6), 3, (completion("ab"),) * 2, graded, rollout)


def test_unknown_rewards_have_no_part_in_advantages_and_bad_ones_spoil_them_all():
    stage = dataclasses.replace(STAGE, group=2)
    assert trainer.advantages([group((None, 1.0)), group((1.0, 0.0))], stage).tolist()[0] == [0.0, 0.0]
    assert np.isnan(trainer.advantages([group((float("nan"), 1.0)), group((1.0, 0.0))], stage)).all()
    assert trainer.advantages([], stage).shape == (0, 2)


def test_missing_groups_are_rows_of_length_zero():
    stage = dataclasses.replace(STAGE, group=2, prompts=3, max_new_tokens=4)
    rows = trainer.experience([group((1.0, 0.0))], np.float32([[1, -1]]), stage, max_prompt_tokens=64, truncated=True)
    assert rows.tokens_BT.shape == (6, 68)  # a bucket of prompt, all the room for new tokens
    assert rows.prompt_length_B.tolist() == [2, 2, 0, 0, 0, 0]
    assert rows.completion_length_B.tolist() == [2, 3, 0, 0, 0, 0]
    assert rows.advantage_B.tolist() == [1, -1, 0, 0, 0, 0]
    assert rows.floor_BT[:2].max() == 0 and (rows.floor_BT[2:] == -np.inf).all()
    assert trainer.experience(
        [], np.zeros((0, 2), np.float32), stage, max_prompt_tokens=64, truncated=True
    ).tokens_BT.shape == (6, 68)


def test_completions_cut_off_are_left_out_where_asked():
    stage = dataclasses.replace(
        STAGE, group=2, prompts=1, max_new_tokens=4, overlong=overlong.OverlongConfig(drop=True)
    )
    rows = trainer.experience([group((1.0, 0.0))], np.float32([[1, -1]]), stage, max_prompt_tokens=64, truncated=False)
    assert rows.completion_length_B.tolist() == [2, 0] and rows.advantage_B.tolist() == [1, 0]
    assert rows.floor_BT is None  # no token could be dropped
