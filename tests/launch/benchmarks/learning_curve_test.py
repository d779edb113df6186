"""Means of learning curves, when they reach an accuracy, and the picture."""

import pytest

from thinkfirst.launch.benchmarks import learning_curve


def point(step, accuracy, seconds, compiling=0.0):
    counts = {"step": step, "completions": 128 * step, "tokens": 1000 * step, "reward": 0.5}
    clocks = {"seconds": seconds, "compile_seconds": compiling, "cpu_seconds": 2 * seconds}
    return {**counts, **clocks, "accuracy": accuracy, "accuracy_strict": accuracy, "format_rate": 1.0}


def run(*points):
    return {"versions": {"jax": "0.10.2"}, "points": list(points)}


RUNS = {
    "ours": {
        0: run(point(0, 0.4, 0.0), point(2, 0.6, 8.0, 4.0), point(4, 0.9, 16.0, 4.0)),
        1: run(point(0, 0.6, 0.0), point(2, 0.8, 12.0, 2.0), point(4, 0.9, 24.0, 2.0)),
    },
    "tunix": {
        0: run(point(0, 0.5, 0.0), point(2, 0.6, 40.0, 6.0), point(4, 0.8, 80.0, 6.0)),
        1: run(point(0, 0.5, 0.0), point(2, 0.6, 40.0, 6.0), point(4, 0.8, 80.0, 6.0)),
    },
}


def test_a_mean_is_one_at_every_step():
    first, second, third = learning_curve.mean(list(RUNS["ours"].values()))
    assert (first["step"], first["accuracy"], first["seconds"]) == (0, 0.5, 0.0)
    assert (second["accuracy"], second["seconds"], second["compile_seconds"]) == (pytest.approx(0.7), 10.0, 3.0)
    assert (third["completions"], third["cpu_seconds"]) == (512, 40.0)


def test_runs_that_were_looked_at_otherwise_have_no_mean():
    with pytest.raises(ValueError, match="no mean"):
        learning_curve.mean([RUNS["ours"][0], run(point(0, 0.4, 0.0), point(4, 0.9, 16.0))])


def test_an_accuracy_is_reached_between_two_points():
    points = [point(0, 0.25, 0.0), point(2, 0.5, 10.0), point(4, 0.25, 20.0), point(6, 1.0, 30.0)]
    assert learning_curve.reached(points, 0.25) == 0.0
    assert learning_curve.reached(points, 0.375) == 5.0
    assert learning_curve.reached(points, 0.75) == pytest.approx(20 + 10 * 2 / 3)
    assert learning_curve.reached(points, 1.01) is None


def test_the_figure_tells_seconds_to_what_both_reach():
    """0.8 is Tunix's last; ours is at 0.7 after 10 s and at 0.9 after 20."""
    found = learning_curve.figure("demo", RUNS)
    assert (found["case"], found["seeds"], found["steps"], found["completions"]) == ("demo", [0, 1], 4, 512)
    assert found["accuracy"] == {"ours": 0.9, "tunix": pytest.approx(0.8)}
    assert found["seconds"] == {"ours": 20.0, "tunix": 80.0}
    assert found["reached"]["seconds"] == {"ours": pytest.approx(15.0), "tunix": 80.0}
    assert found["reached"]["ratio"] == pytest.approx(80 / 15)
    text = "\n".join(learning_curve.lines(found))
    assert "ours   accuracy 0.500 -> 0.900      20.0 s      3.0 s of compilation" in text
    assert "accuracy 0.800 after, compilation left out: ours 15.0 s, tunix 80.0 s  ratio 5.33" in text


def test_one_side_alone_has_a_figure_too():
    found = learning_curve.figure("demo", {"ours": RUNS["ours"]})
    assert found["reached"]["ratio"] is None
    assert "ratio" not in learning_curve.lines(found)[-1]


def test_the_picture_is_written(tmp_path):
    path = tmp_path / "pictures" / "curve.png"
    learning_curve.draw(RUNS, path)
    assert path.read_bytes().startswith(b"\x89PNG")
