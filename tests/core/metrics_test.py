import json

from thinkfirst.core import metrics


def row(step, **values):
    return {"step": step, "stage": "s", **values}


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_a_writer_opened_at_a_step_drops_later_rows_and_cut_off_lines(tmp_path):
    writer = metrics.Writer(tmp_path, step=0)
    for step in (1, 2, 3):
        writer.scalars(row(step, loss=0.5))
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "sta')
    metrics.Writer(tmp_path, step=2).close()
    assert [found["step"] for found in lines(tmp_path)] == [1, 2]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    writer = metrics.Writer(tmp_path, step=0)
    writer.scalars(row(1, loss=float("nan"), phase="easy"))
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "stage": "s", "loss": None, "phase": "easy"}]


def test_clock_adds_up_phases():
    clock = metrics.Clock()
    for _ in range(2):
        with clock.phase("rollout"):
            pass
    assert list(clock.seconds) == ["time/rollout"]
    assert clock.seconds["time/rollout"] >= 0
