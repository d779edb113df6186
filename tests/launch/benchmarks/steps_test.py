"""The bench of whole steps with a peer that only pretends: the check, the sizes each side gets, the figures."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

import pretended_peer
import tolerance
from thinkfirst.launch.benchmarks import rollouts, steps

# Samples [4, 7] or [4, 7, 6] everywhere; is fastest with half of the prompts at a time and one to learn from.
SCRIPT = """
import json, pathlib, sys
for line in sys.stdin:
    asked = json.loads(line)
    with open(pathlib.Path(__file__).with_suffix(".log"), "a") as log:
        print(line, end="", file=log)
    if asked["do"] == "load":
        answer = {"versions": {"google-tunix": "0.1.7"}}
    else:
        spent = 2.0 if (asked["rollout"], asked["update"]) == (1, 1) else 4.0
        answer = {"seconds": spent, "cpu_seconds": 2 * spent, "rollout_seconds": spent / 4}
        if asked["details"]:
            answer |= {"tokens": [[4, 7]] * 8, "logp": [[-1.0, -2.0]] * 8, "advantages": [0.5] * 8, "loss": 0.25}
    print(json.dumps(answer), flush=True)
"""
CASE = rollouts.Case("long_tail", 2, 4, 8, (1, 2, 1, 5, 1, 1, 4, 1))


class Echo(steps.Ours):
    """Our side without a model: packed rows in two micro-batches are fastest; agrees with SCRIPT."""

    worth = {"logp": np.array([[-1.0, -2.0, 9.9]] * 8), "advantages": np.full(8, 0.5), "loss": 0.25}  # noqa: RUF012

    def __init__(self, params):
        pass

    def side(self, case, seconds):
        def of(size):
            def run():
                seconds.append({"rollout": 0.125, "reward": 0.0, "update": 0.375})
                return rollouts.Spent(0.5, 1.0 if size == (128, 2) else 3.0)

            return run

        return of

    def judged(self, case, tokens):
        assert tokens == [[4, 7]] * 8
        return self.worth


def tiny():
    config = dataclasses.replace(
        MODEL(), vocab_size=64, num_layers=6, width=16, ff_width=32, num_heads=2, head_dim=8, window=4, query_scalar=8
    )
    return dataclasses.replace(config, max_length=64)


MODEL = rollouts.model


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(rollouts, "model", tiny)
    monkeypatch.setattr(steps, "cases", lambda: (CASE,))


@pytest.fixture
def pretended(small, monkeypatch, tmp_path):
    """A bench that runs SCRIPT and no model; what the script was asked, and where its environment is."""
    asked = pretended_peer.install(monkeypatch, tmp_path, "tunix_step", SCRIPT)
    monkeypatch.setattr(steps, "Ours", Echo)
    return tmp_path, asked


run = functools.partial(pretended_peer.run, "step")


def test_figures_are_useful_tokens_of_whole_steps_in_turn(pretended, capsys):
    folder, asked = pretended
    status, (figure,) = run(folder, "--repeats=2", "--cases=long_tail")
    assert status == 0
    assert (figure["case"], figure["ours"], figure["peer"], figure["ratio"]) == ("long_tail", 32.0, 8.0, 4.0)
    assert figure["phases"] == {
        "ours": {"rollout": 0.125, "reward": 0.0, "update": 0.375},
        "peer": {"rollout": 0.5, "rest": 1.5},
    }
    assert figure["versions"]["peer"] == {"google-tunix": "0.1.7"}
    said = capsys.readouterr().out
    assert "ours learns from rows of 128 tokens, packed, in 2 micro-batches" in said
    assert "tunix_step samples 1 prompts at a time, and learns from 1" in said
    assert "8 useful tokens/s  peer  ratio 4.00 (4.00 in CPU seconds)" in said
    load, checked, *timed = asked()
    assert load["sizes"]["sliding_window_size"] == 4
    assert checked["details"] and not any(request["details"] for request in timed)
    # four sizes compiled, then tried, then the best warmed up and run twice
    sizes = list(itertools.product((1, 2), (2, 1)))
    assert [(request["update"], request["rollout"]) for request in timed] == sizes * 2 + [(1, 1)] * 3
    assert timed[-1]["limits"] == list(CASE.limits) and timed[-1]["room"] == 5


@pytest.mark.parametrize(
    ("worth", "complaint"),
    [
        ({"logp": Echo.worth["logp"] - 0.01}, "log-probs of tunix_step's samples differ by 0.01"),
        ({"advantages": Echo.worth["advantages"] * 1.01}, "advantages of tunix_step's samples differ by 0.005"),
        ({"loss": float("nan")}, "the loss of tunix_step's samples differ by nan"),
    ],
)
def test_nothing_is_timed_when_a_step_is_worth_something_else(pretended, monkeypatch, capsys, worth, complaint):
    folder, asked = pretended
    monkeypatch.setattr(Echo, "worth", {**Echo.worth, **worth})
    assert run(folder) == (2, None)
    assert complaint in capsys.readouterr().err
    assert len(asked()) == 2


def test_without_its_environment_the_peer_is_left_out(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(steps, "Ours", Echo)
    status, (figure,) = run(tmp_path, "--repeats=1")
    assert (status, figure["ours"], figure["peer"], figure["ratio"]) == (0, 32.0, None, None)
    assert "tunix_step is left out: there is no" in capsys.readouterr().err


def test_a_case_that_there_is_none_of_is_refused(pretended, capsys):
    assert run(pretended[0], "--cases=short_tail") == (2, None)
    assert "no case 'short_tail'; there are long_tail" in capsys.readouterr().err


@pytest.mark.long
def test_our_side_takes_the_trainers_step(small):
    ours, seconds = steps.Ours(rollouts.parameters()), []
    run = ours.side(CASE, seconds)((16, 1))
    assert run().seconds > 0 and run().cpu_seconds > 0
    assert [sorted(row) for row in seconds] == [["reward", "rollout", "update"]] * 2
    subject = ours.subject(CASE)
    sampled = subject.sample(CASE.prompts(), steps.sampling(CASE), jax.random.key(3), group=4, room=5)
    tokens = [row[:length].tolist() for row, length in zip(sampled.tokens_BT, CASE.limits, strict=True)]
    found = ours.judged(CASE, tokens)
    for mine, theirs, length in zip(found["logp"], sampled.logp_BT, CASE.limits, strict=True):
        tolerance.assert_logprob(mine[:length], theirs[:length])
    # A fresh adapter, so no KL and ratio 1: minus the mean over all tokens of their advantages.
    expected = -float((found["advantages"] * CASE.limits).sum() / sum(CASE.limits))
    assert abs(found["loss"] - expected) < 1e-5


def test_cases_are_long_tailed_and_of_one_length():
    equal, tail = steps.cases()
    for case in (equal, tail):
        assert len(case.limits) == case.num_prompts * case.group == 32
        assert case.group == 8
    assert len(set(equal.limits)) == 1
    assert max(tail.limits) > 5 * np.mean(tail.limits)
