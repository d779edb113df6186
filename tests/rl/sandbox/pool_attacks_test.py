"""No hostile program gets out, scores, or lives on, at the best level of this host and without namespaces."""

import os
import pathlib
from collections.abc import Iterator

import pytest

import attacks
from thinkfirst.rl.sandbox import pool, protocol

SQUARES = ("f(7)", "f(8)"), (49, 64)
# Passes for a program that is right and for one that got out.
CHECK = "assert (f(7) == 49 and f(8) == 64) or f(7) == 'escaped'"
HONEST = "def f(x): return x * x"


@pytest.fixture(scope="module", params=["best", "no namespaces"])
def box(request: pytest.FixtureRequest) -> Iterator[pool.Sandbox]:
    layers = [layer for layer in pool.LAYERS if request.param == "best" or layer != "namespaces"]
    os.environ["THINKFIRST_CANARY"] = "escaped"
    with pool.Sandbox(2, limits=protocol.Limits(wall_seconds=4.0, cpu_seconds=1), layers=layers) as box:
        yield box
    del os.environ["THINKFIRST_CANARY"]


@pytest.fixture
def canary(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    path = tmp_path / "canary"
    path.write_text("escaped")
    yield path
    assert path.read_text() == "escaped"
    assert oct(path.stat().st_mode)[-3:] != "777"


def both(code):
    return [protocol.Job(code, SQUARES[0]), protocol.Check(code, (CHECK,), ("f",))]


def refuse(box, code, canary):
    before = attacks.processes_below(os.getpid())
    value, check = box.run(both(code.replace("CANARY", str(canary))))
    assert not any(got == right or got == "escaped" for got, right in zip(value.values, SQUARES[1], strict=True))
    assert isinstance(check.values[0], protocol.Failed)
    assert "lost" not in (value.status, check.status)
    assert attacks.processes_below(os.getpid()) == before
    assert [outcome.values for outcome in box.run(both(HONEST))] == [SQUARES[1], (True,)]


@pytest.mark.parametrize("name", attacks.QUICK)
def test_a_hostile_program_gets_nothing(box, canary, name):
    refuse(box, attacks.QUICK[name], canary)


@pytest.mark.slow
@pytest.mark.parametrize("name", attacks.ENDLESS)
def test_a_program_without_end_is_ended(box, canary, name):
    refuse(box, attacks.ENDLESS[name], canary)


def test_the_attacks_would_be_seen(box, canary):
    """The test above fails for a program that got out and for one that knows the answers."""
    for code in ("def f(x): return 'escaped'", HONEST):
        with pytest.raises(AssertionError):
            refuse(box, code, canary)


# What succeeds where only the layers beside it stand: were the attack not alive, its refusal would prove nothing.
# Run without seccomp these reach no further than the worker's namespaces.
WITHOUT_SECCOMP = """fork, fork by the C library, clone3, processes, exec of memory, kills its parent, kills many,
    kills its group, has the kernel send signals, has a terminal send signals, limits its parent, abstract socket,
    listens, socket pair, new namespaces"""
WITHOUT_A_VIEW = "a file, a file by descriptor, a file by mmap, a folder, passwords, writes to the canary, truncates"


@pytest.mark.parametrize(
    "layers, names", [(("rlimits", "namespaces"), WITHOUT_SECCOMP), (("rlimits",), WITHOUT_A_VIEW)]
)
def test_the_attacks_are_alive(layers, names, canary):
    with pool.Sandbox(2, layers=layers, required=("rlimits",)) as box:
        if box.active != layers:
            pytest.skip(f"left out: attacks in namespaces only, which this host refuses ({box.level})")
        codes = [attacks.QUICK[name.strip()].replace("CANARY", str(canary)) for name in names.split(",")]
        got = [outcome.values for outcome in box.run([protocol.Job(code, ("f(7)",)) for code in codes])]
    assert got == [("escaped",)] * len(codes)


def test_there_are_sixty_attacks():
    assert len(attacks.QUICK) + len(attacks.ENDLESS) >= 60
