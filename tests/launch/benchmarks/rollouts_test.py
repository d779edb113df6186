"""The bench of rollouts with a peer that only pretends: the check, the batch size it gets, the turns, the figures."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import pretended_peer
from thinkfirst.launch import bench
from thinkfirst.launch.benchmarks import rollouts
from thinkfirst.models import gemma, hf_config
from thinkfirst.rl import batch

# Continues a prompt with the prompt; is fastest with 4 rows at a time; counts the requests, and writes them down.
SCRIPT = """
import json, pathlib, sys
for line in sys.stdin:
    asked = json.loads(line)
    with open(pathlib.Path(__file__).with_suffix(".log"), "a") as log:
        print(line, end="", file=log)
    if asked["do"] == "load":
        written = pathlib.Path(asked["weights"], "config.json").exists()
        answer = {"versions": {"google-tunix": "0.1.7", "weights": written}}
    else:
        tokens = [prompt[:limit] for prompt, limit in zip(asked["prompts"], asked["limits"])]
        spent = 2.0 if asked["rows"] == 4 else 4.0
        answer = {"seconds": spent, "cpu_seconds": 2 * spent, "tokens": tokens}
    print(json.dumps(answer), flush=True)
"""
CASES = (
    rollouts.Case("equal_lengths", 2, 4, 8, (6,) * 8),
    rollouts.Case("long_tail", 2, 4, 8, (1, 2, 1, 5, 1, 1, 4, 1)),
)


def tiny():
    config = dataclasses.replace(
        MODEL(), vocab_size=64, num_layers=6, width=16, ff_width=32, num_heads=2, head_dim=8, window=4, query_scalar=8
    )
    return dataclasses.replace(config, max_length=64)


MODEL = rollouts.model


class Echo(rollouts.Ours):
    """Our side without an engine: continues a prompt with the prompt, too."""

    def __init__(self, params):
        pass

    def plain(self, case, *, temperature=1.0, lanes=0):
        return {"plainly": self.sampler(case)}

    def reached(self, case, seconds):
        return None

    def sampler(self, case, *, temperature=1.0, lanes=0):
        tokens_BT = np.repeat(case.prompts().tokens_PT, case.group, axis=0)[:, : max(case.limits)]
        length_B = np.array(case.limits)
        return lambda: batch.Rollout(tokens_BT, 0.0 * tokens_BT, 0.0 * tokens_BT, length_B, length_B < 0)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(rollouts, "model", tiny)
    monkeypatch.setattr(rollouts, "cases", lambda: CASES)


@pytest.fixture
def pretended(small, monkeypatch, tmp_path):
    """A bench that runs SCRIPT and no engine; what the script was asked, and where its environment is."""
    asked = pretended_peer.install(monkeypatch, tmp_path, "tunix_rollout", SCRIPT)
    monkeypatch.setattr(rollouts, "Ours", Echo)
    return tmp_path, asked


run = functools.partial(pretended_peer.run, "rollout")


def test_the_figures_are_useful_tokens_of_interleaved_runs(pretended, monkeypatch, capsys):
    folder, asked = pretended
    monkeypatch.setattr(rollouts, "timed", lambda sample, case: lambda: rollouts.Spent(0.5, 1.0))
    status, figures = run(folder, "--repeats=2")
    assert status == 0
    assert [row["seconds"] for row in figures] == [{"ours": 0.5, "plainly": 0.5, "peer": 2.0}] * 2
    assert [(row["suite"], row["device"]) for row in figures] == [("rollout", "cpu")] * 2
    assert all(row["date"].startswith("20") and row["roofline"] is None for row in figures)
    assert [(row["case"], row["ours"], row["peer"], row["ratio"]) for row in figures] == [
        ("equal_lengths", 96.0, 24.0, 4.0),
        ("long_tail", 32.0, 8.0, 4.0),
    ]
    assert figures[0]["versions"]["peer"] == {"google-tunix": "0.1.7", "weights": True}
    assert figures[0]["versions"]["ours"]["jax"] == jax.__version__
    said = capsys.readouterr().out
    assert "equal_lengths: tunix_rollout takes 4 rows at a time" in said
    assert "96 useful tokens/s  ours" in said
    assert "24 useful tokens/s  peer  ratio 4.00 (4.00 in CPU seconds)" in said
    load, greedy, *timed = asked()
    assert load["sizes"]["sliding_window_size"] == 4
    assert (greedy["temperature"], greedy["tokens"]) == (0.0, True)
    # each case: three sizes compiled, then tried, then the best warmed up and run twice
    assert [request["rows"] for request in timed] == [8, 4, 2, 8, 4, 2, 4, 4, 4] * 2
    assert timed[-1]["limits"] == list(CASES[1].limits)
    assert timed[-1]["room"] == 5


def test_sides_take_turns_and_the_first_turn_does_not_count():
    turns, seconds = [], {"ours": [9.0, 1.0, 3.0, 2.0], "peer": [9.0, 4.0, 4.0, 8.0]}

    def side(name):
        def run():
            turns.append(name)
            return rollouts.Spent(spent := seconds[name].pop(0), 2 * spent)

        return run

    found = rollouts.interleaved({name: side(name) for name in seconds}, 3)
    assert found == {"ours": (2.0, 4.0), "peer": (4.0, 8.0)}
    assert turns == ["ours", "peer"] * 4


def test_nothing_is_timed_when_the_greedy_tokens_differ(pretended, capsys):
    folder, asked = pretended
    script = folder / "tunix_rollout.py"
    script.write_text(SCRIPT.replace("prompt[:limit]", "prompt[:limit - 1] + [1]"))
    assert run(folder) == (2, None)
    assert "greedy tokens differ, nothing is timed" in capsys.readouterr().err
    assert len(asked()) == 2


def test_a_text_that_repeats_itself_checks_nothing(pretended, monkeypatch, capsys):
    folder, _ = pretended
    monkeypatch.setattr(rollouts, "VARIED", 17)
    assert run(folder) == (2, None)
    assert "says little: take other weights" in capsys.readouterr().err


def test_nothing_is_timed_when_a_plainer_way_writes_something_else(small, monkeypatch, capsys):
    class Other(Echo):
        def plain(self, case, *, temperature=1.0, lanes=0):
            rolled = self.sampler(case)()
            return {"plainly": lambda: dataclasses.replace(rolled, tokens_BT=rolled.tokens_BT + 1)}

    monkeypatch.setattr(rollouts, "Ours", Other)
    assert bench.main(["bench", "--suite=rollout"]) == 2
    assert "greedy tokens differ, nothing is timed: ours and plainly" in capsys.readouterr().err


def test_a_row_that_ends_elsewhere_is_no_run():
    def short():
        return batch.Rollout(None, None, None, np.array([6, 6, 5, 6, 6, 6, 6, 6]), None)

    with pytest.raises(ValueError, match="equal_lengths: row 2 did not end at its limit"):
        rollouts.timed(short, CASES[0])()


def test_without_its_environment_the_peer_is_left_out_and_ours_is_timed(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(rollouts, "Ours", Echo)
    status, figures = run(tmp_path, "--repeats=1")
    assert status == 0
    assert [(row["peer"], row["ratio"]) for row in figures] == [(None, None)] * 2
    assert all(row["ours"] > 0 for row in figures)
    assert "tunix_rollout is left out: there is no" in capsys.readouterr().err


@pytest.mark.long
def test_our_side_runs_the_engine(small, monkeypatch, capsys):
    monkeypatch.setattr(rollouts, "LANES", 8)
    twice = dataclasses.replace(CASES[1], group=8, limits=CASES[1].limits * 2)
    figures = rollouts.run(1, None, cases=(CASES[0], twice))
    shared, laned = "prompts prefilled for each sample", "a lane for every row"
    assert [set(row["seconds"]) for row in figures] == [{"ours", shared}, {"ours", shared, laned}]
    assert all(row["ours"] > 0 for row in figures)
    sample = rollouts.Ours(rollouts.parameters()).sampler(CASES[0], temperature=0.0)()
    assert sample.length_B.tolist() == list(CASES[0].limits)
    assert (sample.tokens_BT[0] == sample.tokens_BT[3]).all()  # greedy: samples of one prompt are alike


def test_the_cases_are_the_size_they_say():
    equal, tail = rollouts.cases()
    for case in (equal, tail):
        assert len(case.limits) == case.num_prompts * case.group
        assert case.group == 8
    assert len(set(equal.limits)) == 1
    assert max(tail.limits) == 128
    assert min(tail.limits) >= 1
    assert 15 < np.mean(tail.limits) < 17


def test_the_model_is_one_tunix_has():
    config = rollouts.model()
    counted = sum(leaf.size for leaf in jax.tree.leaves(gemma.Model(config).shapes()))
    assert 10e6 < counted < 30e6
    hf_config.from_hf(hf_config.to_hf(config, dtype="float32", special=hf_config.SpecialIds(2, (1,), 0)))
    assert config.query_scalar == config.head_dim  # Tunix scales by nothing else
