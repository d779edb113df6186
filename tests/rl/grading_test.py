"""From settings to graded samples: both pipelines by one interface, and the user's rewards beside them."""

import dataclasses
import math

import pytest

import tolerance
from thinkfirst.core import config
from thinkfirst.rl import batch, curriculum, grading, optimizer, stages
from thinkfirst.rl.rewards import code, composite, reward, think_first, user
from thinkfirst.rl.sandbox import pool

SCHEDULE = stages.RewardSchedule(
    trace=curriculum.Anneal(0.45, 0.25, 11),
    correctness=curriculum.Anneal(0.40, 0.60, 11),
    confidence=curriculum.Anneal(0.15, 0.15, 11),
    verbosity=curriculum.Anneal(0.05, 0.05, 11),
)
STAGE = stages.Grpo(
    optimizer=optimizer.OptimizerConfig(1e-3),
    phases=(curriculum.Phase("easy", 0, ("easy",)),),
    rewards=SCHEDULE,
)
PROBLEM = batch.Problem("id", "9 + 9?", "18", difficulty="easy")
MODULE = """
import time

def bonus(completions, problems, *, step, phase):
    assert phase == "easy"
    return [step if "18" in completion.text else None for completion in completions]

def hangs(completions, problems, *, step, phase):
    time.sleep(600)
"""


def completion(answer):
    text = f"<reasoning>Step 1: 9 + 9 = 18.</reasoning><answer>{answer}</answer>"
    return batch.Completion(text, tuple((i, i + 1) for i in range(len(text))), (-0.5,) * len(text))


ROWS = [(PROBLEM, completion("18")), (PROBLEM, completion("19"))]


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    (tmp_path / "my_bonus.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def test_show_work_is_graded_as_ever():
    grader = grading.make(STAGE)
    for step, share in ((1, 0.0), (6, 0.5), (11, 1.0), (99, 1.0)):
        weights = composite.RewardWeights(trace=0.45 - 0.2 * share, correctness=0.4 + 0.2 * share)
        found = grader(ROWS, step=step, phase="easy")
        for grade, (problem, row) in zip(found, ROWS, strict=True):
            alone = composite.grade(row, problem, weights)
            assert grade.parts == alone.parts and grade.total == pytest.approx(alone.total)


def test_think_first_anneals_its_style():
    schedule = stages.ThinkFirstRewards(style=curriculum.Anneal(1.0, 0.0, 11), math=think_first.Weights(merit=1.0))
    grader = grading.make(dataclasses.replace(STAGE, rewards=schedule))
    totals = [grader(ROWS[:1], step=step, phase="easy")[0].total for step in (1, 6, 11)]
    assert totals == pytest.approx([1.025 - 0.0, 1.0125, 1.0])  # half of the eight marks stand once: .05 / 2
    assert grading.weights(schedule, 6) == {"weight/style": 0.5}


def test_settings_of_both_pipelines_can_be_set():
    stage = config.override(STAGE, ["rewards.trace.start=0.5", "user_rewards=m:f,0.5*m:g", "user_reward_seconds=2"])
    assert (stage.rewards.trace.start, stage.user_rewards) == (0.5, ("m:f", "0.5*m:g"))
    assert config.restored(STAGE, config.dump(stage)) == stage
    stage = dataclasses.replace(STAGE, rewards=stages.ThinkFirstRewards())
    changed = config.override(stage, ["rewards.code.merit=0.7", "rewards.style.end=0.5"])
    assert changed.rewards.weights()["code"] == think_first.Weights(merit=0.7)
    with pytest.raises(ValueError, match="reward weight merit"):
        config.override(stage, ["rewards.code.merit=-1"])


def test_a_users_score_is_added_with_its_weight_and_none_adds_nothing(my_rewards):
    grader = grading.Grader(grading.pipeline(SCHEDULE), ["0.5*my_bonus:bonus"])
    plain = grading.Grader(grading.pipeline(SCHEDULE))(ROWS, step=3, phase="easy")
    rows = [*ROWS[:1], (PROBLEM, batch.Completion("no", ((0, 2),), (-0.5,)))]
    found = grader(rows, step=3, phase="easy")
    grader.close()
    assert found[0].total == pytest.approx(plain[0].total + 0.5 * 3) and found[0].parts["bonus"] == 3.0
    assert found[1].total == pytest.approx(-0.15) and found[1].parts["bonus"] is None


def test_a_users_reward_that_hangs_makes_totals_unknown_and_not_zero(my_rewards):
    grader = grading.Grader(grading.pipeline(SCHEDULE), ["my_bonus:hangs"], seconds=0.5)
    found = grader(ROWS, step=1, phase="easy")
    grader.close()
    assert [grade.total for grade in found] == [None, None]
    assert found[0].parts["correctness"] == 1.0 and found[0].parts["hangs"] is None


def test_what_is_not_finite_is_nan_in_its_own_row_whatever_the_user_says(my_rewards):
    bad = dataclasses.replace(ROWS[0][1], logp=(math.nan, *ROWS[0][1].logp[1:]))
    rows = [(PROBLEM, bad), ROWS[1]]
    for function, known in (("bonus", True), ("hangs", False)):
        grader = grading.Grader(grading.pipeline(SCHEDULE), [f"my_bonus:{function}"], seconds=60.0 if known else 0.5)
        found = grader(rows, step=1, phase="easy")
        grader.close()
        assert math.isnan(found[0].total) and found[0].parsed.answer == "18"
        assert found[1].total is not None if known else found[1].total is None


def test_the_weights_of_show_work_are_annealed():
    found = grading.composite_weights(SCHEDULE, 6)
    tolerance.assert_close([found.trace, found.correctness, found.confidence, found.verbosity], [0.35, 0.5, 0.15, 0.05])
    assert grading.weights(SCHEDULE, 6)["weight/trace"] == found.trace


def test_a_stage_with_a_reward_that_is_not_there_cannot_be_made():
    with pytest.raises(user.Failed, match="module nowhere_to_be_found cannot be imported"):
        grading.make(dataclasses.replace(STAGE, user_rewards=("nowhere_to_be_found:f",)))


def test_two_rewards_of_one_name_are_refused(my_rewards):
    with pytest.raises(user.Failed, match="two rewards are named 'bonus'"):
        grading.Grader(grading.pipeline(SCHEDULE), ["my_bonus:bonus", "2*my_bonus:bonus"])


def graded(total, **parts):
    return reward.Graded(total, parts, composite.parse.parse(batch.Completion("", (), ())))


def test_every_part_by_domain_over_what_it_applies_to():
    code = dataclasses.replace(PROBLEM, domain="code")
    rows = [(PROBLEM, ROWS[0][1])] * 2 + [(code, ROWS[0][1])]
    found = grading.by_domain(rows, [graded(1.0, a=1.0), graded(0.0, a=None), graded(None, a=None, b=0.25)])
    assert found == {"domain/code/b": 0.25, "domain/math/a": 1.0, "domain/math/reward": 0.5}


def test_programs_of_a_step_are_run_together_and_paid_for():
    """Half of the tests passed is half of the merit, with style as for any wrong answer; without a judge, None."""
    stage = dataclasses.replace(STAGE, rewards=stages.ThinkFirstRewards())
    problem = batch.Problem("p", "Q", "", domain="code", tests=("assert f(1) == 2", "assert f(2) == 4"))
    rows = [(problem, completion(f"def f(x): return {body}")) for body in ("2 * x", "2", "2 * x", "1 /")]
    assert [grade.total for grade in grading.make(stage)(rows, step=1, phase="easy")] == [None] * 4
    assert grading.submissions(rows)[1] == ("def f(x): return 2", problem.tests)
    with pool.Sandbox(1) as box:
        grader = grading.make(stage, code.Judge(box))
        found = grader([*rows, (PROBLEM, completion("18"))], step=1, phase="easy")
    assert [grade.parts["correctness"] for grade in found] == [1.0, 0.5, 1.0, 0.0, 1.0]
    right, half, again, none, _ = (grade.total for grade in found)
    assert right == again > half > none
