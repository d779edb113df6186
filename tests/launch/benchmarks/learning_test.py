"""Runs that learn beside a peer's: what both are asked for, what is kept of a run, what is refused."""

import dataclasses
import json
import math
import pathlib
import types

import numpy as np
import pytest

from thinkfirst.core import mesh
from thinkfirst.launch import bench, recipes
from thinkfirst.launch.benchmarks import learning, peer_process
from thinkfirst.rl import batch, loading, marking, objective, overlong
from thinkfirst.rl.data import source

ROOT = pathlib.Path(__file__).resolve().parents[3]
TUNIX = ROOT / peer_process.ENVIRONMENT
RIGHT = "<reasoning>Step 1: {0}.</reasoning><answer>{0}</answer>"


def task(**changes):
    """demo_small with fewer, smaller steps."""
    config = recipes.demo_small()
    small = {"steps": 3, "prompts": 2, "group": 4, "micro_batches": 1, "row_tokens": 0, "max_new_tokens": 24}
    changed = {
        "grpo": lambda stage: dataclasses.replace(stage, **small | changes),
        "sft": lambda stage: dataclasses.replace(stage, steps=2),
    }
    stages = tuple(changed.get(stage.name, lambda stage: stage)(stage) for stage in config.stages)
    return learning.Task(dataclasses.replace(config, stages=stages), every=2)


class Knowing:
    """A side that answers one problem in `step` right, and takes known times."""

    versions = {"jax": "0"}  # noqa: RUF012

    def __init__(self):
        self.steps = []

    def step(self, number):
        self.steps.append(number)
        return learning.Taken(2.0, 3.0, 1.5 if number == 1 else 0.0, 100, float(number))

    def answers(self, problems):
        """Every one of the first `steps` problems is right."""
        known = len(self.steps)
        asked = [(place, problem) for place, problem in enumerate(problems) for _ in range(learning.SAMPLES)]
        return [
            batch.Completion(RIGHT.format(problem.answer if place < known else "x"), (), (), stopped=True)
            for place, problem in asked
        ]


def problems():
    return source.make(recipes.demo_small().data, 0).held_out()[:4]


def test_a_curve_has_points_before_between_and_after(capsys):
    side = Knowing()
    points = learning.trained(side, task(), problems(), "ours, seed 0:")
    assert side.steps == [1, 2, 3]
    assert [point["step"] for point in points] == [0, 2, 3]
    assert [point["accuracy"] for point in points] == [0.0, 0.5, 0.75]
    assert [point["seconds"] for point in points] == [0.0, 2.5, 4.5]
    assert [point["compile_seconds"] for point in points] == [0.0, 1.5, 1.5]
    assert [point["tokens"] for point in points] == [0, 200, 300]
    assert [point["completions"] for point in points] == [0, 16, 24]
    assert [point["reward"] for point in points] == [None, 2.0, 3.0]
    json.dumps(points, allow_nan=False)
    assert "ours, seed 0: step 3: accuracy 0.750, 4.5 s and 1.5 s of compilation" in capsys.readouterr().out


def test_the_peer_is_asked_for_the_stages_settings():
    stage = task().grpo
    found = learning.settings(stage, 7, prompt_tokens=52)
    assert (found["seed"], found["prompts"], found["group"], found["max_new_tokens"]) == (7, 2, 4, 24)
    assert (found["beta"], found["clip"], found["average"]) == (0.03, 0.2, "sequence-mean-token-mean")
    assert (found["rank"], found["adam"]["b2"], found["clip_norm"]) == (16, 0.99, 1.0)
    assert len(found["rates"]) == 3
    assert max(found["rates"]) == pytest.approx(4e-3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"loss": objective.LossConfig(average="constant")}, "no average 'constant'"),
        ({"loss": objective.LossConfig(kl="k1")}, "its loss is not what the peer's side has"),
        ({"loss": objective.LossConfig(clip_high=0.28)}, "its loss is not"),
        ({"num_iterations": 2}, "its num_iterations is not"),
        ({"top_k": 5}, "its top_k, top_p or min_p is not"),
        ({"advantage": "rloo"}, "its advantage is not"),
        ({"overlong": overlong.OverlongConfig(buffer=4)}, "its overlong is not"),
    ],
)
def test_what_the_peers_side_would_pass_over_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        learning.settings(task(**changes).grpo, 7, prompt_tokens=52)


def test_what_is_shorter_than_the_room_has_stopped():
    found = learning.arrays([[5, 6], [7, 8, 9], []], [[-1.0, -2.0], [-1.0, -1.0, -1.0], []], room=3)
    assert found.tokens_BT.tolist() == [[5, 6, 0], [7, 8, 9], [0, 0, 0]]
    assert found.length_B.tolist() == [3, 3, 1]
    assert found.stopped_B.tolist() == [True, False, True]


def test_a_run_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(learning, "prepared", lambda task, workdir: tmp_path / "base")
    monkeypatch.setattr(loading, "from_config", lambda config, workdir: config.checkpoint)

    def make(task, subject, seed, problems, start):
        assert subject == str(tmp_path / "base")
        made.append((start and start(), seed))
        return {"versions": {}, "points": [{"step": seed}]}

    monkeypatch.setattr(learning, "_made", make)
    found = learning.run(task(), tmp_path, seeds=[0, 1], start=lambda: "peer")
    assert made == [(None, 0), ("peer", 0), (None, 1), ("peer", 1)]  # in turn
    assert found["tunix"][1]["points"] == [{"step": 1}]
    (tmp_path / "tunix-0.json").unlink()
    again = learning.run(task(), tmp_path, seeds=[0, 1, 2], start=lambda: "peer")
    assert made[4:] == [("peer", 0), (None, 2), ("peer", 2)]
    assert again["ours"][0] == found["ours"][0]
    assert set(learning.run(task(), tmp_path, seeds=[0], start=None)) == {"ours"}


def test_a_run_of_another_task_is_refused(tmp_path):
    path = tmp_path / "ours-0.json"
    row = {"task": task().described(), "versions": {}, "points": [1]}
    path.write_text(json.dumps(row))
    assert learning.read(path, task())["points"] == [1]
    for other in (task(steps=4), dataclasses.replace(task(), every=3)):
        with pytest.raises(ValueError, match=r"ours-0\.json: a run of another task"):
            learning.read(path, other)
    for text in ("{", "[]", '{"task": 1}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"ours-0\.json: not the file of a run"):
            learning.read(path, task())


def test_without_the_peers_environment_ours_learns_alone(tmp_path, monkeypatch, capsys):
    asked = []

    def run(task, workdir, *, seeds, start):
        asked.append((task.every, seeds, start))
        point = {"step": 0, "completions": 0, "accuracy": 0.5, "accuracy_strict": 0.5, "format_rate": 1.0, "tokens": 0}
        clocks = dict.fromkeys(("seconds", "compile_seconds", "cpu_seconds"), 0.0)
        return {"ours": {seed: {"versions": {"jax": "1"}, "points": [{**point, **clocks}]} for seed in seeds}}

    monkeypatch.setattr(learning, "run", run)
    given = ["--suite=learning", "--peer=tunix", f"--peer_env={tmp_path}", "--seeds=0,2", f"--workdir={tmp_path}"]
    assert bench.main(["bench", *given, f"--out={tmp_path / 'out.json'}"]) == 0
    assert asked == [(10, [0, 2], None)]
    assert "tunix_learning is left out: there is no" in capsys.readouterr().err
    (figure,) = json.loads((tmp_path / "out.json").read_text())
    assert (figure["suite"], figure["case"], figure["seeds"]) == ("learning", "demo", [0, 2])
    assert (tmp_path / "learning_comparison.png").is_file()


class Told(peer_process.Peer):
    """A peer that says what `answers` has for it, by what it is asked to do."""

    def __init__(self, answers):
        self.name, self.answers, self.asked = "told", answers, []

    def ask(self, request):
        self.asked.append(request)
        return self.answers[request["do"]]


@pytest.fixture
def subject():
    found = loading.from_folder(recipes.DEMO_BASE, mesh.make(mesh.MeshConfig()))
    return dataclasses.replace(found, max_prompt_tokens=52)


def answers(rows, logp, spans=()):
    clocks = {"seconds": 2.0, "cpu_seconds": 3.0, "compiling": list(spans)}
    return {"tokens": rows, "logp": logp, **clocks}


def test_a_step_of_the_peers_is_paid_for_here(subject, monkeypatch):
    rows = [[9, 10]] * 4 + [[9] * 24] * 4
    logp = [[-0.1] * len(row) for row in rows]
    told = {
        "load": {"versions": {"google-tunix": "0"}},
        "sample": answers(rows, logp, [[0.0, 1.0]]),
        "learn": answers([], [], [[0.5, 1.5]]),
        "evaluate": answers(rows[:1] * 16, logp[:1] * 16, [[10.0, 14.0]]),
    }
    gaps = iter([0.0, 0.0])
    monkeypatch.setattr(learning, "distance", lambda *given, room: next(gaps))
    side = learning.Theirs(task(), subject, 3, peer := Told(told))
    load = peer.asked[0]
    assert (load["pattern"], load["stop_ids"], load["sizes"]["num_kv_heads"]) == (("local", "global"), (1, 5), 2)
    assert len(side.answers(problems())) == 16
    assert [len(peer.asked[1]["prompts"]), peer.asked[1]["seed"]] == [16, 3]
    taken = side.step(1)
    # two requests of 2 s, and 4 s that the evaluation compiled for training
    assert 8.0 <= taken.seconds < 9.0
    assert taken.compile_seconds == 5.5
    assert taken.tokens == 4 * 3 + 4 * 24
    rewards = peer.asked[-1]["rewards"]
    assert len(rewards) == 8 and all(map(math.isfinite, rewards))
    assert side.step(2).compile_seconds == 1.5
    with pytest.raises(ValueError, match="told has learnt, and still samples from the policy it began with"):
        side.step(3)


def test_a_peer_that_begins_elsewhere_is_refused(subject, monkeypatch):
    told = {"load": {"versions": {}}, "sample": answers([[9]] * 8, [[-0.1]] * 8)}
    monkeypatch.setattr(learning, "distance", lambda *given, room: 0.5)
    with pytest.raises(ValueError, match=r"told begins with another policy: log-probs differ by 0\.5 nats"):
        learning.Theirs(task(), subject, 0, Told(told)).step(1)


@pytest.mark.long
def test_the_distance_is_that_of_the_engines_log_probs(subject):
    """What the engine sampled is near; one log-prob moved by a hundredth is that far."""
    asked = problems()
    sampling = batch.Sampling.of(max_new_tokens=12)
    prompts = subject.prompts(asked)
    found = subject.sample(prompts, sampling, learning.jax.random.key(0), group=2, room=12)
    count_B = found.length_B - found.stopped_B
    sampled = {
        "tokens": [row[:n].tolist() for row, n in zip(found.tokens_BT, count_B, strict=True)],
        "logp": [row[:n].tolist() for row, n in zip(found.logp_BT, count_B, strict=True)],
    }
    given = (subject, batch.unpadded(prompts))
    assert learning.distance(*given, sampled, room=12) < 1e-4
    sampled["logp"][3][0] += 0.01
    assert learning.distance(*given, sampled, room=12) == pytest.approx(0.01, abs=1e-4)


@pytest.mark.long
def test_ours_learns_by_the_trainers_step(subject):
    """Short answers are paid for here: the base, which knows no tags, earns nothing else that differs."""
    side = learning.Ours(task(steps=2, overlong=overlong.OverlongConfig(buffer=20)), subject, 0)
    before = side.answers(problems())
    first, second = side.step(1), side.step(2)
    assert first.compile_seconds > second.compile_seconds >= 0
    assert first.seconds > first.compile_seconds
    assert 8 <= first.tokens <= 8 * 24
    after = side.answers(problems())
    assert len(before) == len(after) == 4 * learning.SAMPLES
    assert [row.logp for row in before] != [row.logp for row in after]
    assert subject.adapter is None  # another seed begins anew


@pytest.mark.long
@pytest.mark.skipif(not (TUNIX / "bin" / "python").is_file(), reason="left out: Tunix learns; `make tunix-env`")
def test_tunix_learns_from_the_rewards_it_is_given(subject, monkeypatch):
    monkeypatch.delenv("JAX_NUMPY_DTYPE_PROMOTION", raising=False)  # strict is for us
    script = peer_process.SCRIPTS / learning.SCRIPT
    with peer_process.Peer(script, environment=str(TUNIX)) as peer:
        side = learning.Theirs(task(), dataclasses.replace(subject, source=str(recipes.DEMO_BASE)), 0, peer)
        side._grade = lambda rows, step, phase: [
            types.SimpleNamespace(total=len(completion.spans) % 5) for _, completion in rows
        ]
        looked = side.answers(problems())
        marked = marking.mark_all([(problem, looked[4 * place]) for place, problem in enumerate(problems())], "steps")
        assert len(looked) == 16 and len(marked) == 4
        steps = [side.step(number) for number in (1, 2, 3)]  # the first and the last check the policy
    assert steps[0].compile_seconds > 0
    assert all(np.isfinite(taken.reward) and taken.seconds > taken.compile_seconds for taken in steps)
