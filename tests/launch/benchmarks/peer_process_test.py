"""A peer as a child process: it answers, it ends, and without its environment it is left out."""

import os
import sys

import pytest

from house import source
from thinkfirst.launch.benchmarks import peer_process

SCRIPT = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "stop":
        sys.exit(3)
    print(json.dumps({"echo": asked}), flush=True)
"""


@pytest.fixture
def peer(tmp_path):
    """A script that speaks the protocol, in an environment of its own."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    script = tmp_path / "echoing.py"
    script.write_text(SCRIPT)
    with peer_process.Peer(script, environment=str(tmp_path)) as running:
        yield running


def test_it_stays_alive_between_requests(peer):
    assert peer.ask({"do": "this", "n": [1]}) == {"echo": {"do": "this", "n": [1]}}
    assert peer.ask({"do": "that"}) == {"echo": {"do": "that"}}


def test_a_peer_that_ends_is_no_answer(peer):
    for _ in range(2):
        with pytest.raises(ValueError, match="echoing ended with status 3 when asked to stop"):
            peer.ask({"do": "stop"})


def test_the_process_ends_with_its_context(peer):
    peer.__exit__()
    with pytest.raises(ProcessLookupError):
        os.kill(peer._process.pid, 0)


def test_without_its_environment_it_says_how_to_get_it(tmp_path):
    with pytest.raises(peer_process.MissingError, match=r"there is no .*/bin/python; `make tunix-env` installs it"):
        peer_process.Peer(tmp_path / "echoing.py", environment=str(tmp_path))


def test_peers_import_nothing_of_ours_and_nobody_imports_them():
    for module in source.modules():
        for _, name in source.imports(module):
            if module.path.startswith("launch/benchmarks/peers/"):
                assert not name.startswith(source.PACKAGE), module.path
            assert not name.startswith(f"{source.PACKAGE}.launch.benchmarks.peers"), module.path
