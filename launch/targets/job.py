"""What is launched, and the steps that launch it: plain shell, to be read, printed and run one by one."""

import dataclasses
import math
import pathlib
import re
import shlex

from thinkfirst.core import mirror

NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
STEPS = ("create", "copy", "install", "start", "follow", "collect", "delete")
FOLDER = "thinkfirst_run"  # on a worker, below its home; not "thinkfirst", which Python would take for the package


@dataclasses.dataclass(frozen=True)
class Step:
    """One of STEPS: what it does, and the bash that does it."""

    name: str
    about: str
    script: str


@dataclasses.dataclass(frozen=True)
class Job:
    """One launch.  `flags` are thinkfirst-train's, `workdir` one of them; `bring` are folders each worker needs."""

    name: str
    flags: tuple[str, ...]
    workdir: str
    wheel: str = ""
    bring: tuple[str, ...] = ()
    zone: str = ""
    project: str = ""
    accelerator: str = ""
    topology: str = ""
    cluster: str = ""
    hosts: int = 2
    spot: bool = True

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"--name={self.name}: at most 40 of a-z, 0-9 and -, a letter first and no - at the end")
        for url in self.bring:
            mirror.local_copy(url)
        for flag in ("coordinator", "num_processes", "process"):
            if any(re.match(f"--?{flag}(=|$)", given) for given in self.flags):
                raise ValueError(f"--{flag} is for thinkfirst-pod to say: leave it out")

    @property
    def kept(self) -> str:
        """Where this machine keeps what it sends and collects."""
        return f"runs/pods/{self.name}"

    @property
    def region(self) -> str:
        """us-east5 for the zone us-east5-a."""
        return self.zone.rpartition("-")[0]

    @property
    def num_chips(self) -> int:
        """Chips of the topology."""
        return math.prod(map(int, self.topology.split("x")))

    def need(self, **whats: str) -> None:
        """ValueError unless these fields are set; each comes with an example."""
        for field, example in whats.items():
            if not getattr(self, field):
                raise ValueError(f"--{field} is not set: such as --{field}={example}")

    def need_wheel(self) -> None:
        """ValueError unless there is a wheel to copy."""
        if not re.fullmatch(r"[\w.+-]+\.whl", pathlib.Path(self.wheel).name) or not pathlib.Path(self.wheel).is_file():
            raise ValueError(f"--wheel={self.wheel}: no such wheel; `make wheel` writes dist/thinkfirst-*.whl")


def command(program: str, *words: str, **flags: str | bool) -> str:
    """A command line: `program` as it stands, words quoted, one flag a line; no flag that is "" or False."""
    lines = [" ".join([program, *map(shlex.quote, words)])]
    for name, value in flags.items():
        name = name.replace("_", "-")
        if value:
            lines.append(f"--{name}" if value is True else f"--{name}={shlex.quote(value)}")
    return " \\\n  ".join(lines)


def written(job: Job, folder: str, worker: str, *, wheel: bool = True) -> str:
    """Shell that makes `folder` on this machine: the script of the workers, and the wheel beside it."""
    lines = [f"mkdir -p {folder}", f"cat >{folder}/worker.sh <<'END_OF_WORKER'\n{worker}END_OF_WORKER"]
    if wheel:
        lines.append(f"cp {shlex.quote(job.wheel)} {folder}/")
    return "\n".join(lines)


def from_url(job: Job) -> str:
    """Shell that copies a workdir at a URL to `job.kept`/run."""
    scheme, _, path = job.workdir.partition("://")
    if scheme == "file":
        return f"mkdir -p {job.kept}\nrm -rf {job.kept}/run\ncp -R {shlex.quote(path)} {job.kept}/run"
    if scheme == "gs":
        source = shlex.quote(job.workdir.rstrip("/") + "/*")
        return f"mkdir -p {job.kept}/run\ngcloud storage cp --recursive {source} {job.kept}/run/"
    raise ValueError(f"--workdir={job.workdir}: only gs:// and file:// are collected from")
