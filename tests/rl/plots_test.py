"""The picture of the learning curves: its numbers by hand, its size, and every kind of run it must survive."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest

from thinkfirst.rl import plots

EVALUATIONS = [{"stage": "base", "accuracy": 0.1}, {"stage": "s$f^t", "accuracy": 0.11}, {"stage": "none"}]


def sft_rows(num_steps: int, *, stage: str = "sft", start: int = 0) -> list[dict]:
    return [
        {"step": start + i, "stage": stage, "kind": "sft", "stage_step": i, "loss": 2 / i, "grad_norm": 0.5,
         "tokens_per_second": 4e4}
        for i in range(1, num_steps + 1)
    ]  # fmt: skip


def grpo_rows(num_steps: int, *, stage: str = "grpo") -> list[dict]:
    keys = (
        "reward", "rewards/trace/mean", "rewards/correctness/mean", "rewards/confidence/mean", "rewards/verbosity/mean",
        "rewards/format/mean", "rewards/own$part/mean", "frac_reward_zero_std", "kl", "entropy", "grad_norm",
        "completions/mean_length", "completions/min_length", "completions/max_length", "completions/clipped_ratio",
        "sampling/sampling_logp_difference/mean", "weight/trace", "weight/correctness",
    )  # fmt: skip
    phases = ("easy", "medium", "mixed")
    return [
        {"step": i, "stage": stage, "kind": "grpo", "stage_step": i, "phase": phases[3 * (i - 1) // num_steps]}
        | {key: math.sin(i + number) for number, key in enumerate(keys)}
        | ({"eval/accuracy": 0.5} if i % 10 == 0 else {})
        for i in range(1, num_steps + 1)
    ]


def size(path: Path) -> tuple[int, int]:
    """Width and height as the PNG header states them."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", head[16:24])


def test_a_whole_run_fills_a_grid_of_about_1600_by_1100(tmp_path):
    path = tmp_path / "plots" / "learning_curves.png"
    plots.learning_curves(sft_rows(30) + grpo_rows(60), EVALUATIONS, path)
    width, height = size(path)
    assert abs(width - 1600) < 20 and abs(height - 1100) < 40
    assert list(path.parent.iterdir()) == [path]


def test_panels_without_values_take_no_room(tmp_path):
    plots.learning_curves(sft_rows(5), [], tmp_path / "sft.png")
    plots.learning_curves(grpo_rows(5), [], tmp_path / "grpo.png")
    plots.learning_curves([], [], tmp_path / "none.png")
    heights = [size(tmp_path / name)[1] for name in ("none.png", "sft.png", "grpo.png")]
    assert heights[0] < 100 < heights[1] < 400 < heights[2]


@pytest.mark.parametrize(
    "rows",
    [
        sft_rows(1),
        grpo_rows(1),
        [row | dict.fromkeys(("reward", "kl", "phase", "eval/accuracy")) for row in grpo_rows(3)],
        [{"kind": "grpo", "stage": "grpo", "stage_step": 1, "reward": None}],
        [{"kind": "grpo", "reward": 0.0}, {"kind": "sft", "loss": "oops"}, {"kind": None}, {}],
        [{"kind": "grpo", "stage_step": 4, "completions/mean_length": 3.0}],
        [{"kind": "grpo", "stage_step": 1, "eval/accuracy": 0.0, "kl": math.inf, "reward": math.nan}],
        grpo_rows(4) + sft_rows(4, stage="a") + sft_rows(2, stage="b") + grpo_rows(3, stage="grpo_two"),
    ],
)
def test_any_run_is_drawn(tmp_path, rows):
    plots.learning_curves(rows, EVALUATIONS, tmp_path / "curves.png")
    assert size(tmp_path / "curves.png")[0] > 1500


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def fail(self, target):
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(plots.FigureCanvasAgg, "print_png", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.learning_curves([], [], path)
    assert path.read_bytes() == b"old"


def test_track_lays_stages_end_to_end_and_takes_the_last_of_a_repeated_step():
    rows = sft_rows(2, stage="base") + sft_rows(3, stage="sft", start=2)
    rows.insert(4, rows[3] | {"loss": 9.0})
    track = plots.track("SFT", rows + grpo_rows(2))
    assert track.x.tolist() == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in track.rows] == [2, 1, 2, 9.0, 2 / 3]
    assert track.stages == (slice(0, 2), slice(2, 5))
    assert track.bands == ((0.5, 2.5, "base"), (2.5, 5.5, "sft"))


def test_bands_of_one_stage_are_the_phases():
    assert plots.track("GRPO", grpo_rows(6)).bands == ((0.5, 2.5, "easy"), (2.5, 4.5, "medium"), (4.5, 6.5, "mixed"))


def test_values_are_floats_or_gaps():
    rows = [{"a": 1}, {"a": None}, {}, {"a": "x"}, {"a": math.inf}, {"a": 2.5}]
    np.testing.assert_array_equal(plots.values(rows, "a"), [1, np.nan, np.nan, np.nan, np.nan, 2.5])


def test_smoothed_by_hand():
    y = np.zeros(80)
    y[10], y[40] = 5.0, np.nan
    mean = plots.smoothed(y)
    np.testing.assert_allclose(mean[7:14], [0, 1, 1, 1, 1, 1, 0])
    assert np.isnan(mean[40]) and np.isfinite(np.delete(mean, 40)).all()
    np.testing.assert_allclose(plots.smoothed(np.where(np.isnan(y), np.nan, 3.0))[38:43], [3, 3, np.nan, 3, 3])


def test_short_runs_are_not_smoothed():
    np.testing.assert_array_equal(plots.smoothed(np.array([1.0, 5.0, np.nan])), [1.0, 5.0, np.nan])
