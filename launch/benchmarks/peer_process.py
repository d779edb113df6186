"""Somebody else's program as a child process that stays alive: a JSON object a line each way.

The peers are the scripts of peers/; each runs in an environment of its own, so that ours never needs theirs.
"""

import json
import pathlib
import subprocess
from typing import Any

SCRIPTS = pathlib.Path(__file__).parent / "peers"
ENVIRONMENT = ".build/oracle_tunix"  # what `make tunix-env` makes


class MissingError(ValueError):
    """The peer's environment is not installed."""


def python(script: pathlib.Path, environment: str) -> pathlib.Path:
    """The Python that the peer's script runs in; MissingError if it is not installed."""
    found = pathlib.Path(environment) / "bin" / "python"
    if not found.is_file():
        raise MissingError(f"{script.stem} is left out: there is no {found}; `make tunix-env` installs it (3 GB)")
    return found


class Peer:
    """A running peer.  As a context manager it ends the process."""

    def __init__(self, script: pathlib.Path, *, environment: str = ENVIRONMENT) -> None:
        self.name = script.stem
        command = [str(python(script, environment)), "-P", str(script)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; ValueError if the peer ends instead, whose traceback is on stderr then."""
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            line = ""
        else:
            line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"{self.name} ended with status {self._process.wait()} when asked to {request['do']}")
        return json.loads(line)
