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


def taught(groups, advantage_PG, stage, **changes):
    found = samples.taught(groups, np.float32(advantage_PG), stage)
    asked = {"max_prompt_tokens": 512, "num_shards": 1, "truncated": True, **changes}
    return trainer.experience(found, stage, **asked)


def test_columns_nobody_reaches_are_cut_off():
    stage = dataclasses.replace(STAGE, group=2, prompts=1, max_new_tokens=200)
    long = dataclasses.replace(group((1.0, 0.0)), prompt=(5,) * 127)
    assert taught([long], [[1, -1]], stage)[0].rows.tokens_BT.shape == (2, 256)
    assert taught([group((1.0, 0.0))], [[1, -1]], stage)[0].rows.tokens_BT.shape == (2, 128)


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


def test_missing_groups_are_rows_of_padding():
    stage = dataclasses.replace(STAGE, group=2, prompts=3, max_new_tokens=4)
    known, _ = taught([group((1.0, 0.0))], [[1, -1]], stage, max_prompt_tokens=64)
    assert known.rows.tokens_BT.shape == (6, 68)  # the longest prompt there may be, all the room for new tokens
    assert known.rows.segment_BT.max(axis=1).tolist() == [1, 2, 0, 0, 0, 0]
    assert known.rows.column_BT[:2].tolist() == [[2, 3, 0, 0], [2, 3, 4, 0]] and known.rows.column_BT[2:].max() == 0
    assert known.advantage_BT[:2].tolist() == [[1, 1, 0, 0], [-1, -1, -1, 0]]
    assert known.floor_BT[0].tolist() == [0, 0, -np.inf, -np.inf] and (known.floor_BT[2:] == -np.inf).all()
    nothing, _ = taught([], np.zeros((0, 2)), stage, max_prompt_tokens=64)
    assert nothing.rows.tokens_BT.shape == (6, 68) and nothing.rows.segment_BT.max() == 0


def test_samples_are_packed_where_asked():
    """Four samples of 4 and 5 tokens: four rows of 68, or one of 80."""
    stage = dataclasses.replace(STAGE, group=2, prompts=2, max_new_tokens=4, row_tokens=80)
    groups = [group((1.0, 0.0)), group((0.0, 1.0))]
    known, metrics = taught(groups, [[1, -1], [-2, 2]], stage, max_prompt_tokens=64)
    assert known.rows.tokens_BT.shape == (1, 80)
    assert known.rows.segment_BT[0, :19].tolist() == [1] * 4 + [2] * 5 + [3] * 4 + [4] * 5 + [0]
    assert known.advantage_BT[0].tolist() == [1, 1, -1, -1, -1, -2, -2, 2, 2, 2]  # and no room to spare
    assert metrics["learner/rows"] == 1
    tolerance.assert_close(np.float32(metrics["learner/padding_waste"]), np.float32(62 / 80))
    tolerance.assert_close(np.float32(metrics["learner/padding_waste_unpacked"]), np.float32(1 - 18 / (4 * 68)))


def test_completions_cut_off_are_left_out_where_asked():
    stage = dataclasses.replace(
        STAGE, group=2, prompts=1, max_new_tokens=4, overlong=overlong.OverlongConfig(drop=True)
    )
    known, _ = taught([group((1.0, 0.0))], [[1, -1]], stage, truncated=False)
    assert known.rows.column_BT.tolist() == [[2, 3, 0, 0], [0, 0, 0, 0]]
    assert int(known.rows.num_samples) == 2
    assert known.floor_BT is None  # no token could be dropped
