import pytest

from thinkfirst.launch import judging
from thinkfirst.rl import batch
from thinkfirst.rl.sandbox import pool


def test_where_nothing_is_to_be_run_nothing_is_started(monkeypatch):
    monkeypatch.setattr(pool, "Sandbox", None)
    with judging.judge(needed=False) as judge:
        assert judge is None


def test_programs_are_judged_and_the_level_is_printed(capsys):
    problem = batch.Problem("id", "Q", "", tests=("assert f(1) == 2",))
    with judging.judge(needed=True) as judge:
        assert judge is not None and judge("def f(x): return 2", problem) == 1.0
    assert "sandbox: rlimits + seccomp" in capsys.readouterr().out


def test_a_host_that_cannot_confine_is_said_in_a_line(monkeypatch):
    """RuntimeError of the pool becomes what programs answer bad input with."""
    class Refused(pool.Sandbox):
        def __enter__(self):
            raise RuntimeError("sandbox: this host gives no seccomp")

    monkeypatch.setattr(pool, "Sandbox", Refused)
    with pytest.raises(ValueError, match="this host gives no seccomp"), judging.judge(needed=True):
        pass
