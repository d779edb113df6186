"""A real trace of a CPU, and what is said of it."""

import gzip
import json
import re
import socket

import jax
import jax.numpy as jnp
import pytest

from thinkfirst.core import profiling


@jax.jit
def rollout(x):
    """Loops in a loop, in the scopes of a rollout."""

    def turn(_, x):
        with jax.named_scope("decode"):
            x = jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ x), x)
        with jax.named_scope("sample"):
            return jnp.sort(x, axis=0)

    with jax.named_scope("rollout"):
        return jax.lax.fori_loop(0, 20, turn, x)


def take(window, steps):
    """Steps of a phase that waits for its program."""
    x = jnp.ones((128, 128))
    rollout(x).block_until_ready()
    for step in steps:
        with window.step(step), profiling.phase("rollout"):
            rollout(x).block_until_ready()


def events(workdir, session):
    """The trace as Perfetto and Chrome read it."""
    (path,) = (workdir / "profile" / "plugins" / "profile" / session).glob("*.trace.json.gz")
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def test_the_steps_asked_for_are_traced_and_summed(tmp_path, capsys):
    window = profiling.Window(tmp_path, range(2, 4))
    take(window, range(1, 6))
    steps = [event["args"]["step_num"] for event in events(tmp_path, "steps_2_4") if event.get("name") == "step"]
    assert steps == ["2", "3"]
    text = (tmp_path / "profile" / "summary.txt").read_text()
    assert text in capsys.readouterr().out
    assert text.startswith("steps 2 to 3: ") and f"JAX {jax.__version__}, " in text
    names = re.findall(r"%  ( *)(\w+)$", text, re.MULTILINE)
    assert ("", "rollout") in names and ("  ", "decode") in names and ("  ", "sample") in names
    assert float(re.search(r"accounted for: (.*)%;", text)[1]) >= 90
    window.end()
    assert capsys.readouterr().out == ""


def test_a_window_that_was_not_filled_says_what_it_has(tmp_path, capsys):
    window = profiling.Window(tmp_path, range(2, 9))
    take(window, range(1, 4))
    window.close()
    window.end()
    out = capsys.readouterr().out
    assert "steps 2 to 3: " in out and "this call took 2 of these steps; not 4" in out
    take(window, [5])  # of the next stage
    assert not window.close() and capsys.readouterr().out == ""


def test_a_step_that_ends_in_an_error_is_not_summed_and_leaves_no_trace_running(tmp_path, capsys):
    window = profiling.Window(tmp_path, range(1, 3))
    with pytest.raises(KeyError), window.step(1):
        raise KeyError
    window.close()
    assert not (tmp_path / "profile" / "summary.txt").exists() and capsys.readouterr().out == ""
    take(profiling.Window(tmp_path, range(1, 2)), [1])
    assert "steps 1 to 1: " in capsys.readouterr().out


def test_another_host_writes_files_of_its_own_and_says_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    take(profiling.Window(tmp_path, range(1, 2)), [1])
    assert "steps 1 to 1: " in (tmp_path / "profile" / "summary_3.txt").read_text()
    assert events(tmp_path, "steps_1_2_host_3") and capsys.readouterr().out == ""


def test_without_steps_nothing_is_written(tmp_path):
    take(profiling.Window(tmp_path, range(0)), range(1, 3))
    profiling.NOTHING.close()
    assert not list(tmp_path.iterdir())


def test_the_page_by_hand():
    seconds = {
        ("rollout", "decode"): 1.0,
        ("rollout", "decode", "decode_attention"): 2.0,
        ("rollout", "host"): 0.5,
        ("update",): 3.0,
        ("update", "no scope", "jit_add"): 0.5,
        ("update", "decode_attention"): 1.0,
        ("log", "host"): 1e-6,
        (): 1.0,
    }
    text = profiling.summary(seconds, 10.0, [4, 5], about="here")
    expected = """\
steps 4 to 5: 5.000 s a step; here

 s a step   share  itself
    2.250   45.0%   30.0%  update
    0.500   10.0%   10.0%    decode_attention
    0.250    5.0%    0.0%    no scope
    0.250    5.0%    5.0%      jit_add
    1.750   35.0%    0.0%  rollout
    1.500   30.0%   10.0%    decode
    1.000   20.0%   20.0%      decode_attention
    0.250    5.0%    5.0%    host

by scope, wherever it is:
    1.500   30.0%          decode
    1.500   30.0%          decode_attention

accounted for: 75.0%; outside of all phases 10.0%, operations in no scope 5.0%, lost 10.0%
"""
    assert text == expected


def test_steps_are_parsed():
    assert profiling.parse_steps("10:13") == range(10, 13)
    assert not profiling.parse_steps("")
    for wrong in ("10", "0:3", "5:5", "7:3", "-1:3", "1:2:3", "a:b", " 1:2"):
        with pytest.raises(ValueError, match=f"--profile_steps={wrong} must be FIRST:STOP"):
            profiling.parse_steps(wrong)


def test_a_port_that_cannot_be_had_is_refused():
    profiling.check_port(0)
    for wrong in (-1, 65536):
        with pytest.raises(ValueError, match=f"--profile_server={wrong} is no port"):
            profiling.check_port(wrong)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--profile_server={port}: Address already in use"):
            profiling.check_port(port)


def test_the_server_listens(capsys):
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    profiling.check_port(port)
    profiling.serve(port)
    try:
        socket.create_connection(("localhost", port), timeout=10).close()
    finally:
        jax.profiler.stop_server()
    assert f"port {port} " in capsys.readouterr().out
    profiling.serve(0)
    assert capsys.readouterr().out == ""
