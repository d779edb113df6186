"""What is kept of a problem's samples: right, well formed, the best, and nothing twice."""

import json

import pytest

from thinkfirst.core import runtime
from thinkfirst.launch import recipes, think_first
from thinkfirst.rl import batch, reject, stages
from thinkfirst.rl.data import replay
from thinkfirst.rl.rewards import parse, reward


def graded(total, *, correct=1.0, form=1.0, **parts):
    return reward.Graded(total, {"correctness": correct, "format": form, **parts}, parse.Parsed(""))


def texts(*grades, keep=9, least=1.0, names="abcdefgh"):
    completions = [batch.Completion(name, (), ()) for name, _ in zip(names, grades, strict=False)]
    return reject.best(completions, grades, keep=keep, least=least)


def test_only_right_and_well_formed_samples_are_kept_best_first():
    rows = (graded(0.5), graded(0.9), graded(2.0, correct=0.0), graded(3.0, form=0.0), graded(None))
    assert texts(*rows) == ["b", "a"]
    assert texts(*rows, keep=1) == ["b"]


def test_equal_texts_are_kept_once():
    assert texts(graded(0.5), graded(0.5), graded(0.4), names="aab") == ["a", "b"]


def test_open_problems_count_by_their_rubric():
    rows = (graded(0.5, correct=None, rubric=0.7), graded(0.6, correct=None, rubric=0.2))
    assert texts(*rows, least=0.5) == ["a"]
    assert texts(*rows) == []


class Line:
    """Three problems that come again and again."""

    counts_by_difficulty = False
    runs_code = False

    def demonstration(self, index):
        raise NotImplementedError

    def held_out(self):
        return []

    def fingerprint(self):
        return ""

    def problem(self, index, difficulty):
        return batch.Problem(str(index % 3), f"Q{index % 3}", "1", choices=("1", "2"), difficulty=difficulty)


def test_parts_are_written_once_and_a_later_call_goes_on(tmp_path):
    stage = stages.Reject(stages.ThinkFirstRewards(), problems=5, prompts=2, samples=2, difficulties=("easy",))
    calls = []

    def sample(asked):
        calls.append([problem.id for problem in asked])
        return [(problem, f"<answer>{problem.id}</answer>") for problem in asked]

    go = lambda check: reject.collect(stage, Line(), sample, reject.traces(tmp_path, "reject"), check)  # noqa: E731
    late = runtime.Budget(max_seconds=1e-9)
    with pytest.raises(runtime.Stopped):
        go(lambda where: late.check(where) if calls else None)
    assert calls == [["0", "1"]]
    found = go(runtime.Budget().check)
    assert calls == [["0", "1"], ["2"]]  # five asked, three of them different
    assert found == {"problems": 3, "samples": 6, "kept": 3, "by_domain": {"math": 3}}
    assert go(runtime.Budget().check) == found and len(calls) == 2
    rows = replay.read(str(reject.traces(tmp_path, "reject")))
    assert [row.completion for row in rows] == [f"<answer>{i}</answer>" for i in range(3)]
    assert rows[0].problem.choices == ("1", "2")
    assert json.loads(reject.traces(tmp_path, "reject").read_text().splitlines()[0])["difficulty"] == "easy"


def test_a_distill_stage_replays_a_stage_before_it():
    config = think_first.think_first_tiny()
    *before, gone, distill = config.stages[: [stage.name for stage in config.stages].index("distill") + 1]
    assert isinstance(gone, stages.Reject)
    with pytest.raises(ValueError, match="distill replays 'reject', which is no Reject stage before it"):
        stages.RunConfig("x", (*before, distill), config.data, checkpoint=str(recipes.DEMO_BASE))
