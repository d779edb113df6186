import json
import re

import pytest

from thinkfirst.rl import batch
from thinkfirst.rl.data import arithmetic, source
from thinkfirst.rl.rewards import correctness


def right(shown):
    text = shown.completion
    return bool(correctness.score(batch.Completion(text, ((0, len(text)),), (-0.1,)), shown.problem))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_slips_is_the_share_of_wrong_traces(share):
    problems = source.make(source.DataConfig(slip_share=share), seed=0)
    wrong = sum(not right(problems.demonstration(index)) for index in range(400)) / 400
    assert abs(wrong - share) < 0.08 if 0 < share < 1 else wrong == share


def test_plain_answers_are_right_and_have_no_tags():
    problems = source.make(source.DataConfig(kind="arithmetic_plain"), seed=0)
    shown = [problems.demonstration(index) for index in range(400)]
    assert all(row.completion.removesuffix(".").endswith(row.problem.answer) for row in shown)
    assert not any(tag in row.completion for row in shown for tag in ("<reasoning>", "<answer>", "</answer>"))
    count = lambda matches: sum(matches(row) for row in shown) / len(shown)  # noqa: E731
    assert abs(count(lambda row: row.problem.question == f"Repeat: {row.completion}") - 0.15) < 0.06
    assert abs(count(lambda row: row.completion.startswith("Step 1: ")) - 0.425) < 0.08


def test_drills_are_right_and_ask_nothing_that_is_held_out():
    """A drill asks `27+15, 33-8` and answers `27+15=42. 33-8=25.`."""
    problems = source.make(source.DataConfig(kind="arithmetic_drill"), seed=0)
    for index in range(100):
        shown = problems.demonstration(index)
        sums = shown.problem.question.split(", ")
        assert len(sums) == source.DRILL_LENGTH
        assert shown.completion == " ".join(f"{asked}={eval(asked)}." for asked in sums)
        for asked in sums:
            left, operator, right = re.fullmatch(r"(\d+)([-+*])(\d+)", asked).groups()
            assert not arithmetic.is_held_out(f"What is {left} {operator} {right}?")


def test_rewarded_problems_are_not_those_of_the_traces():
    problems = source.make(source.DataConfig(), seed=0)
    traced = {problems.demonstration(index).problem.id for index in range(0, 300, 3)}
    rewarded = {problems.problem(index, "medium").id for index in range(300)}
    assert len(traced & rewarded) < 3


def write(path, questions):
    path.write_text("".join(json.dumps({"question": q, "answer": "1", "completion": q}) + "\n" for q in questions))
    return str(path)


def test_files_are_shuffled_anew_every_epoch(tmp_path):
    paths = {"train": write(tmp_path / "t", "abcdefgh"), "eval": write(tmp_path / "e", "z")}
    problems = source.make(source.DataConfig(kind="jsonl", **paths), seed=0)
    epochs = [[problems.problem(8 * epoch + i, "medium").question for i in range(8)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list("abcdefgh")
    assert epochs[0] != epochs[1]
    assert [problem.question for problem in problems.held_out()] == ["z"]


def test_held_out_questions_in_training_are_refused(tmp_path):
    paths = {"train": write(tmp_path / "t", "ab"), "eval": write(tmp_path / "e", "b")}
    with pytest.raises(ValueError, match="1 held-out questions are also in training"):
        source.make(source.DataConfig(kind="jsonl", **paths), seed=0)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"data\.train is not set"):
        source.make(source.DataConfig(kind="gsm8k"), seed=0)
    with pytest.raises(ValueError, match=r"data\.train=nowhere: no such file"):
        source.make(source.DataConfig(kind="gsm8k", train="nowhere"), seed=0)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match="slip_share 2"):
        source.make(source.DataConfig(slip_share=2.0), seed=0)


@pytest.mark.parametrize(("kind", "fewest"), [("arithmetic", 3), ("small_world", 6), ("small_world_open", 6)])
def test_held_out_problems_of_every_kind_are_needed(kind, fewest):
    assert len(source.make(source.DataConfig(kind=kind, held_out=fewest), 0).held_out()) == fewest
    with pytest.raises(ValueError, match=rf"data\.held_out={fewest - 1} leaves some of the {fewest} "):
        source.make(source.DataConfig(kind=kind, held_out=fewest - 1), 0)
