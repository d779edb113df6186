"""Jobs are answered in order and in exact types; their limits hold; a broken worker is replaced, a weak one refused."""

import os
import signal
from collections.abc import Iterator

import pytest

from thinkfirst.rl.sandbox import pool, protocol, worker

LIMITS = protocol.Limits(wall_seconds=20.0, cpu_seconds=5)


@pytest.fixture(scope="module")
def box() -> Iterator[pool.Sandbox]:
    with pool.Sandbox(2, limits=LIMITS) as box:
        yield box


def run(box, code, *calls, setup=()):
    (outcome,) = box.run([protocol.Job(code, calls, setup)])
    return outcome


def test_values_have_their_types(box):
    outcome = run(box, "def f(x): return x", "f(1)", "f(True)", "f(1.0)", "f((1, [2, {3}]))", "f({'a': None})")
    assert outcome.status == "done"
    assert outcome.values == (1, True, 1.0, (1, [2, {3}]), {"a": None})
    assert [type(value) for value in outcome.values[:3]] == [int, bool, float]


def test_outcomes_come_in_the_order_of_the_jobs(box):
    jobs = [protocol.Job(f"import time\ntime.sleep({0.2 if k % 4 == 0 else 0})", (str(k),)) for k in range(12)]
    assert [outcome.values for outcome in box.run(jobs)] == [(k,) for k in range(12)]
    assert box.run([]) == []


def test_a_call_that_fails_fails_alone(box):
    outcome = run(box, "def f(x): return 1 / x", "f(1)", "f(0)", "f(", "g(1)", "f(2)", "f")
    names = ("ZeroDivisionError", "SyntaxError", "NameError")
    assert outcome.values == (1.0, *map(protocol.Failed, names), 0.5, protocol.Failed("UnplainError"))


def test_a_program_that_fails_fails_every_call(box):
    assert run(box, "1 / 0", "1", "2").values == (protocol.Failed("ZeroDivisionError"),) * 2
    assert run(box, "x = 1", "x", setup=("raise KeyError",)).values == (protocol.Failed("KeyError"),)


def test_setup_runs_after_the_program_and_before_the_calls(box):
    assert run(box, "class Node: v = 3", "n.v", setup=("n = Node()", "n.v += 1")).values == (4,)


def test_a_program_is_a_module_that_is_not_main(box):
    code = "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\nif __name__ == '__main__':\n    1 / 0"
    assert run(box, code, "P(2).x", "__name__").values == (2, "solution")


def test_jobs_do_not_see_each_other(box):
    for _ in range(4):
        assert run(box, "import json\nseen = hasattr(json, 'left')\njson.left = 1", "seen").values == (False,)


def test_sets_of_text_have_one_order(box):
    code = "words = list({'one', 'two', 'three', 'four', 'five'})"
    assert len({outcome.values[0][0] for outcome in box.run([protocol.Job(code, ("words",))] * 8)}) == 1


def test_a_check_compares_where_the_program_is_not(box):
    code = "def f(x): return x + 1\ndef g(x, *, by): return [x * by]"
    tests = (
        "assert f(1) == 2",
        "assert f(1) == 3",
        "assert math.isclose(f(0.1), 1.1)",
        "assert g('a', by=2) == ['aa'] and k == 5",
        "assert f('a')",
        "assert h(1)",
    )
    (outcome,) = box.run([protocol.Check(code, tests, ("f", "g", "h"), modules=("math",), setup=("k = f(4)",))])
    wrong, raised, missing = map(protocol.Failed, ("AssertionError", "TypeError", "RuntimeError"))
    assert outcome.values == (True, wrong, True, True, raised, missing)


def test_an_exception_of_the_program_is_one_of_the_test(box):
    code = "def f(x):\n    raise {0: ValueError, 1: StopIteration, 2: SystemExit, 3: AssertionError}[x]"
    expect = "try:\n    f({})\nexcept {}:\n    pass\nelse:\n    raise AssertionError"
    tests = tuple(expect.format(*case) for case in [(0, "ValueError"), (0, "KeyError"), (3, "RuntimeError")])
    # all(map(...)) would end early, and be true, if StopIteration came through
    tests += ("assert all(map(f, [1]))", "f(2)")
    (outcome,) = box.run([protocol.Check(code, tests, ("f",))])
    assert outcome.values == (True, protocol.Failed("ValueError"), True, *(protocol.Failed("RuntimeError"),) * 2)


def test_a_check_goes_on_when_its_program_is_gone(box):
    code = "import os\ndef f(x): return x if x else os._exit(0)"
    (outcome,) = box.run([protocol.Check(code, ("assert f(1) == 1", "f(0)", "assert f(1) == 1"), ("f",))])
    assert outcome.status == "done" and outcome.values[0] is True
    assert all(isinstance(value, protocol.Failed) for value in outcome.values[1:])


@pytest.mark.parametrize(
    "code, status, limits",
    [
        ("def f(x):\n    while True: pass", "cpu", protocol.Limits(wall_seconds=120.0, cpu_seconds=1)),
        ("import time\ndef f(x): time.sleep(1000)", "deadline", protocol.Limits(wall_seconds=3.0)),
        ("import os\ndef f(x): os._exit(0)", "crashed", LIMITS),
        ("def f(x): return 'x' * 100_000", "output", LIMITS),
    ],
)
def test_what_was_answered_before_the_end_stands(code, status, limits):
    with pool.Sandbox(1, limits=limits) as box:
        outcome = run(box, code, "1 + 1", "f(0)", "2 + 2")
        assert outcome.status == status
        assert outcome.values == (2, protocol.Failed(status), protocol.Failed(status))


def test_memory_is_bounded(box):
    with pool.Sandbox(1, limits=protocol.Limits(memory_bytes=128 << 20)) as small:
        assert run(small, "x = len(bytearray(200 << 20))", "x").values == (protocol.Failed("MemoryError"),)
    assert run(box, "x = len(bytearray(200 << 20))", "x").values == (200 << 20,)


def test_a_worker_that_died_is_replaced(box):
    for each in box._workers:
        each._process.kill()
    assert run(box, "", "1").values == (1,)
    assert [outcome.values for outcome in box.run([protocol.Job("", ("2",))] * 4)] == [(2,)] * 4


def test_a_job_that_loses_two_workers_is_not_judged(box, monkeypatch):
    def die(doomed, asked, limits):
        if asked == protocol.Job("deadly", ("1",)):
            os.kill(doomed._process.pid, signal.SIGKILL)
        return real(doomed, asked, limits)

    real = worker.Worker.run
    monkeypatch.setattr(worker.Worker, "run", die)
    deadly, fine = box.run([protocol.Job("deadly", ("1",)), protocol.Job("", ("1",))])
    assert deadly.status == "lost" and deadly.values == (protocol.Failed("lost"),)
    assert fine.values == (1,)
    assert run(box, "", "3").values == (3,)


def test_a_host_without_what_is_required_runs_nothing(monkeypatch):
    launch = worker.Worker._launch

    def lack(poor, layers):
        return launch(poor, layers[:1]) | {"refused": {"seccomp": "not on this kernel"}}

    monkeypatch.setattr(worker.Worker, "_launch", lack)
    with pytest.raises(RuntimeError, match=r"no seccomp.*not on this kernel"), pool.Sandbox(1):
        pass


def test_a_layer_that_does_not_hold_is_found_at_the_start(monkeypatch):
    launch = worker.Worker._launch

    def boast(boaster, layers):
        hello = launch(boaster, ("rlimits",))
        return hello | {"active": ["rlimits", "seccomp"]}

    monkeypatch.setattr(worker.Worker, "_launch", boast)
    with pytest.raises(RuntimeError, match=r"self-test failed.*socket in spite of seccomp"), pool.Sandbox(1):
        pass


def test_the_level_is_printed(capsys):
    with pool.Sandbox(1, layers=("rlimits", "seccomp")) as box:
        assert box.active == ("rlimits", "seccomp")
    expected = "sandbox: rlimits + seccomp; landlock left out; namespaces left out; workers: 1\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("bad", [{"layers": ("jail",)}, {"layers": ("rlimits",)}, {"required": ("seccomp", "x")}])
def test_unknown_layers_are_refused(bad):
    with pytest.raises(ValueError, match="layers are"):
        pool.Sandbox(1, **bad)


@pytest.mark.parametrize("bad", [{"wall_seconds": 0.0}, {"cpu_seconds": 0}, {"memory_bytes": 1}, {"output_bytes": 0}])
def test_bad_limits_are_refused(bad):
    with pytest.raises(ValueError, match="limits must be positive"):
        protocol.Limits(**bad)
