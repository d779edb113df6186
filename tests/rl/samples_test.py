import contextlib
import dataclasses
import json
import zlib

import jax
import numpy as np
import pytest

import tolerance
from thinkfirst.core import metrics, runtime
from thinkfirst.rl import batch, curriculum, grading, optimizer, overlong, policy, samples, stages
from thinkfirst.rl.data import mix, source
from thinkfirst.rl.rewards import composite, parse, trace

STAGE = stages.Grpo(
    optimizer=optimizer.OptimizerConfig(1e-3),
    phases=(curriculum.Phase("easy", 2, ("easy",)), curriculum.Phase("mixed", 0, ("medium", "hard"))),
    rewards=stages.RewardSchedule(*[curriculum.Anneal(0.1, 0.1, 1)] * 4),
    steps=5,
    prompts=4,
    group=2,
    max_new_tokens=6,
)


class Answering(policy.Policy):
    """A policy and an engine that write from one to six tokens, by the key and the prompt's id."""

    def __init__(self):
        self.params = self.adapter = None
        self.keys = []
        self.metrics = {"rollout/turns": 3.0, "rollout/occupancy": 0.5}

    def prompts(self, problems):
        return batch.pad_prompts([[1, 2]] * len(problems), [zlib.crc32(p.id.encode()) for p in problems], 64)

    def engine(self, room):
        return self

    def release(self):
        pass

    def sample(self, params, adapter, prompts, sampling, key, *, group, pause=None):
        self.keys.append(tuple(jax.random.key_data(key).tolist()))
        seed = self.keys[-1][-1]
        draws = [np.random.default_rng([seed, prompt_id]).integers(1, 7, group) for prompt_id in prompts.id_P]
        length_B = np.concatenate(draws)
        shape = (len(length_B), 6)
        return batch.Rollout(
            tokens_BT=np.full(shape, 9, np.int32),
            logp_BT=np.full(shape, -1, np.float32),
            floor_BT=np.zeros(shape, np.float32),
            length_B=length_B,
            stopped_B=length_B < 6,
        )

    def completions(self, rollout):
        lengths = rollout.length_B.tolist()
        return [batch.Completion("x" * n, tuple((i, i + 1) for i in range(n)), (-1.0,) * n) for n in lengths]


def graded(total):
    return composite.Graded(total, {"trace": 1.0}, parse.parse(batch.Completion("", (), ())))


def sampler(grade, **settings):
    stage = dataclasses.replace(STAGE, **settings)
    sampling = batch.Sampling.of(max_new_tokens=stage.max_new_tokens)
    problems = source.make(source.DataConfig(), 0)
    return samples.Sampler(Answering(), stage, problems, sampling, jax.random.key(0), grade)


def by_length(rows, *, step, phase):
    """Groups of samples of one length tell nothing."""
    return [graded(float(len(completion.text) > 3)) for _, completion in rows]


def all_alike(rows, *, step, phase):
    return [graded(1.0) for _ in rows]


def gather(found, step=1):
    return found.gather(step, metrics.Clock())


def ids(groups):
    return [group.problem.id for group in groups]


def test_every_step_draws_problems_nobody_drew_before():
    problems = source.make(source.DataConfig(), 0)
    first, later = samples.draw(problems, STAGE, 1), samples.draw(problems, STAGE, 3)
    assert [problem.difficulty for problem in first] == ["easy"] * 4
    assert [problem.difficulty for problem in later] == ["medium", "hard"] * 2
    assert not {problem.id for problem in first} & {problem.id for problem in later}
    assert later == samples.draw(problems, STAGE, 3)


def test_a_step_without_refilling_samples_once_and_keeps_all():
    found = sampler(all_alike)
    groups, keep, measured = gather(found)
    assert (len(groups), keep, len(found.subject.keys)) == (4, (0, 1, 2, 3), 1)
    assert measured == {"rollout/turns": 3.0, "rollout/occupancy": 0.5}
    assert ids(groups) == [problem.id for problem in samples.draw(found.problems, STAGE, 1)]


def test_groups_that_tell_nothing_are_replaced_within_the_budget():
    found = sampler(by_length, refill_tokens=400)
    groups, keep, measured = gather(found, 2)
    reward_PG, _ = samples.rewards([groups[place] for place in keep])
    assert len(keep) == 4 and (reward_PG.std(axis=1) > 0).all() and len(groups) > 4
    assert measured["refill/groups"] == len(groups) and measured["refill/missing"] == 0
    assert measured["refill/rounds"] == len(found.subject.keys) > 1
    assert measured["rollout/turns"] == 3.0 * len(found.subject.keys) and measured["rollout/occupancy"] == 0.5
    assert sum(int(group.rollout.length_B.sum()) for group in groups) <= 400


def test_what_is_sampled_depends_on_the_step_alone():
    """As after a resume: another sampler, at that step only."""
    one = sampler(by_length, refill_tokens=400)
    for step in (1, 2, 3):
        straight = gather(one, step)
        resumed = gather(sampler(by_length, refill_tokens=400), step)
        assert ids(straight[0]) == ids(resumed[0]) and straight[1] == resumed[1]
        for mine, theirs in zip(straight[0], resumed[0], strict=True):
            jax.tree.map(np.testing.assert_array_equal, mine.rollout, theirs.rollout)


def test_refilling_never_draws_what_another_step_draws():
    found = sampler(all_alike, refill_tokens=60)
    seen = [problem for step in range(1, 6) for problem in ids(gather(found, step)[0])]
    assert len(seen) > 5 * 4 and len(set(seen)) == len(seen)


def test_a_budget_that_ends_the_drawing_leaves_groups_missing():
    found = sampler(all_alike, refill_tokens=1)
    groups, keep, measured = gather(found)
    assert (len(groups), keep, measured["refill/missing"]) == (4, (), 4.0)


def test_every_round_has_a_key_of_its_own():
    """Or a prompt that comes up twice in a step would get the same samples twice."""
    found = sampler(by_length, refill_tokens=400)
    gather(found, 2)
    keys = found.subject.keys
    assert len(keys) > 1 and len(set(keys)) == len(keys)
    assert keys[0] == tuple(jax.random.key_data(jax.random.fold_in(found.root, 2)).tolist())


def test_unknown_rewards_are_told_apart_from_zeros():
    totals = [1.0, None, 0.0, -1.0] * 2
    groups, _, _ = gather(sampler(lambda rows, **_: [graded(total) for total in totals]))
    reward_PG, known_PG = samples.rewards(groups[:2])
    assert reward_PG.tolist() == [[1.0, 0.0], [0.0, -1.0]]
    assert known_PG.tolist() == [[True, False], [True, True]]


def test_a_round_is_graded_at_once_in_the_phase_of_its_step():
    calls = []

    def noting(rows, *, step, phase):
        calls.append((step, phase, [problem.id for problem, _ in rows]))
        return by_length(rows, step=step, phase=phase)

    found = sampler(noting, refill_tokens=400)
    groups = [group for step in (2, 3) for group in gather(found, step)[0]]
    assert len(calls) == len(found.subject.keys) > 2 and {call[:2] for call in calls} == {(2, "easy"), (3, "mixed")}
    assert [name for _, _, names in calls for name in names] == [name for name in ids(groups) for _ in range(2)]


def test_a_reward_that_is_not_finite_is_never_zero(monkeypatch):
    monkeypatch.setattr(trace, "score", lambda *_: np.nan)
    reward_PG, known_PG = samples.rewards(gather(sampler(grading.make(STAGE)))[0])
    assert np.isnan(reward_PG).all() and known_PG.all()


def test_another_error_of_a_reward_is_not_hidden():
    def raising(completion, problem, *, step, phase):
        raise ValueError("no such domain")

    with pytest.raises(ValueError, match="no such domain"):
        gather(sampler(grading.Grader(raising)))


def test_overlong_completions_are_punished_in_the_reward():
    """Room for 6 tokens, the last 4 punished: 3 tokens cost 1/4, 6 all of it; half of that by `penalty`."""
    stage = dataclasses.replace(STAGE, overlong=overlong.OverlongConfig(buffer=4, penalty=0.5))
    found = samples.punished([graded(1.0), graded(1.0), graded(None)], np.array([3, 6, 6]), stage)
    tolerance.assert_close([found[0].total, found[1].total], [0.875, 0.5])
    assert found[2].total is None
    assert [grade.parts for grade in found] == [{"trace": 1.0, "overlong": value} for value in (-0.25, -1.0, -1.0)]


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
    steps = [[problem.question for problem in samples.draw(problems, stage, step)] for step in range(1, 7)]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(question for step in epoch for question in step) == sorted(row["question"] for row in rows)
    assert steps[3:] == [[found.question for found in samples.draw(problems, stage, step)] for step in (4, 5, 6)]


class Noting:
    """A source that counts by difficulty and notes what it is asked for."""

    counts_by_difficulty = True
    runs_code = False

    def problem(self, index, difficulty):
        return batch.Problem(f"{difficulty} {index}", "Q", "1")

    def demonstration(self, index): ...

    def held_out(self): ...

    def fingerprint(self): ...


def test_added_groups_are_beyond_every_turn_of_their_difficulty():
    """Steps 1 and 2 are of easy problems, later ones of others: their added problems are easy, and nobody else's."""
    stage = dataclasses.replace(STAGE, refill_tokens=12)
    steps = [samples.draw(Noting(), stage, step, count=6) for step in range(1, 6)]
    ids = [problem.id for asked in steps for problem in asked]
    assert len(set(ids)) == len(ids) == 30
    assert [problem.id for problem in steps[1]] == [f"easy {n}" for n in (4, 5, 6, 7, 26, 27)]


def test_a_step_may_be_left_in_its_rollout_and_around_its_rewards():
    """Others looked for SIGTERM between steps only, and saved nothing: a step is mostly rollout and rewards."""

    class Pausing(Answering):
        def sample(self, *arguments, group, pause):
            pause()
            return super().sample(*arguments, group=group)

    places = ["grpo: rollout of step 3", "grpo: rewards of step 3", "grpo: rewards of step 3"]
    for left in range(4):
        seen, graded = [], []

        def check(where, seen=seen, left=left):
            seen.append(where)
            if len(seen) == left:
                raise runtime.Stopped(where)

        def grade(rows, *, graded=graded, **settings):
            graded.append(len(rows))
            return by_length(rows, **settings)

        asked = dataclasses.replace(sampler(grade), subject=Pausing(), check=check)
        with pytest.raises(runtime.Stopped) if left else contextlib.nullcontext():
            asked.gather(3, metrics.Clock())
        assert seen == places[: left or 3]
        assert bool(graded) == (left in (0, 3))
