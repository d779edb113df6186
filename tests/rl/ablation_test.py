"""The table of designs, worked by hand, and the table of runs from given evaluations."""

import math

import tolerance
from thinkfirst.rl import ablation
from thinkfirst.rl.rewards import trace


def test_the_outputs_are_what_they_are_called():
    found = [trace.score(ablation._completion(text, sure), ablation.QUESTION) for _, text, sure in ablation.OUTPUTS]
    tolerance.assert_close(found, [1.0, 0.5, 0.0, 1.0])


def test_rewards_by_hand():
    """good + rich, early: .45 + .40 + .15 (1 - .05^2); wrong, late: .25 / 2 trace - .15 * .95^2."""
    table = ablation.canned()
    assert list(table) == ["correctness only", "+ trace", "+ confidence", "annealed early", "annealed late"]
    assert table["correctness only"] == [1.0, 1.0, 1.0, 0.0]
    tolerance.assert_close(table["annealed early"][0], 0.45 + 0.40 + 0.15 * (1 - 0.05**2))
    tolerance.assert_close(table["annealed late"][3], 0.25 / 2 - 0.15 * 0.95**2)
    assert all(min(row[:3]) > row[3] for row in table.values())


def test_runs_are_averaged_over_seeds_and_their_problems_resampled():
    def run(*scores):
        return {
            "by_problem": [{"id": str(i), "lenient": score} for i, score in enumerate(scores)],
            "accuracy": sum(scores) / len(scores),
            "accuracy_strict": 0.5, "format_rate": 1.0, "trace_score": 0.25,
            "calibration_error": None, "mean_tokens": 9.0,
        }  # fmt: skip

    (_, _, line) = ablation.trained_lines({"x": [run(1.0, 0.0), run(1.0, 1.0)]})
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells == ["x", "0.750", "0.500-1.000", "0.500 1.000", "0.500", "1.000", "0.250", "nan", "9.0"]


def test_the_picture_is_one(tmp_path):
    row = lambda i: {"kind": "grpo", "rewards/correctness/mean": i / 9, "rewards/trace/mean": math.nan}  # noqa: E731
    rows = [{"kind": "sft"}, *map(row, range(9))]
    ablation.picture({"a": [rows, rows], "b": [rows]}, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000
