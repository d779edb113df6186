"""A peer of the benchmarks that is a script of the test's own, in an environment of its own."""

import json
import sys

from thinkfirst.launch import bench
from thinkfirst.launch.benchmarks import peer_process


def install(monkeypatch, folder, name, script):
    """Makes `script` the peer of that name; returns what reads the requests that it wrote down."""
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / f"{name}.py").write_text(script)
    monkeypatch.setattr(peer_process, "SCRIPTS", folder)
    return lambda: [json.loads(line) for line in (folder / f"{name}.log").read_text().splitlines()]


def run(suite, folder, *arguments):
    """(exit status, figures or None) of the bench beside that peer."""
    out = folder / "figures.json"
    given = [f"--suite={suite}", "--peer=tunix", f"--peer_env={folder}", f"--out={out}"]
    status = bench.main(["bench", *given, *arguments])
    return status, json.loads(out.read_text()) if out.exists() else None
