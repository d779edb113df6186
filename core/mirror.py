"""A workdir at a URL, such as gs://bucket/run: copied there after every save, and from there by a machine that is new.

A run works on its machine's own disk, for a bucket knows no lock, no append and no rename of a folder.  What the bucket
holds is at any moment what a kill could have left in a workdir, so that a run goes on from it bit for bit:

    config.json, logs, traces      sent before the checkpoints and the progress that count on their rows
    checkpoints/<stage>/<step>/    MANIFEST.json comes last and goes first: a folder without one is no checkpoint
    progress.json                  read before the checkpoints it speaks of are looked for, and sent after them

The bucket is the run.  Where it holds one, the local copy is thrown away and fetched anew: at most what was done since
the last copy is done again, and comes out the same.  Only the first host of a run calls any of this.
"""

import contextlib
import json
import os
import pathlib
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

from thinkfirst.core import manifest, owner

CONFIG = "config.json"
LAST = ("progress.json", "final_results.json")
OWNER = "OWNER.json"
_CHECKPOINTS, _PART = "checkpoints", ".part"
# What stores raise besides OSError, by the module that has it: none of these packages is needed for file://.
_FAULTS = (
    ("gcsfs.retry", "HttpError"),
    ("gcsfs.retry", "ChecksumError"),
    ("gcsfs.retry", "NonRetryableError"),
    ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("google.api_core.exceptions", "GoogleAPIError"),
)


def is_url(place: str) -> bool:
    """Whether `place` is a URL and no path."""
    return "://" in place


def local_copy(url: str) -> pathlib.Path:
    """Where this machine keeps the workdir of a URL: gs://bucket/run in runs/gs/bucket/run."""
    scheme, _, rest = url.partition("://")
    parts = [part for part in rest.split("/") if part]
    if not (scheme and parts) or {".", ".."} & {scheme, *parts}:
        raise ValueError(f"{url}: not the URL of a folder, such as gs://bucket/run")
    return pathlib.Path("runs", scheme, *parts)


def bring(url: str, folder: str | pathlib.Path) -> int:
    """Copies every file below a URL into a folder, such as a model into a worker's; returns how many there were."""
    with _told(url):
        store = _Store(url)
        names = store.names()
        if not names:
            raise ValueError(f"{url}: there is nothing")
        for name in names:
            store.get(name, pathlib.Path(folder, name))
    return len(names)


class Mirror:
    """The copy of one workdir at a URL."""

    def __init__(self, url: str, workdir: pathlib.Path) -> None:
        self.url, self._workdir = url, workdir
        self._store: _Store | None = None
        self._token = ""
        self._sent: dict[str, Any] = {}  # by name, what of a file was sent last: size and time of change, or content
        self._steps: dict[str, bytes] = {}  # by place, such as "checkpoints/sft/40", the manifest that is there

    def fetch(self) -> None:
        """Makes the local workdir what the URL holds, if it holds a run; a checkpoint copied in part is left behind."""
        with _told(self.url):
            self._store = store = _Store(self.url)
            names = [name for name in store.names() if name != OWNER]
            if not names:
                return
            if CONFIG not in names:
                raise ValueError(f"{self.url}: there are files, such as {names[0]}, but no {CONFIG} of a run")
            whole = {_step_of(name) for name in names if name.endswith(f"/{manifest.FILE_NAME}")}
            for path in self._workdir.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != owner.FILE_NAME:
                    path.unlink()
            for name in names:
                if not _step_of(name) or _step_of(name) in whole:
                    store.get(name, self._workdir / name)
            self._steps = self._whole_steps()

    def push(self) -> None:
        """Sends what changed since the last time.  OSError when the URL cannot be written, or somebody else took over.

        Called when no checkpoint is being written; the logs may grow meanwhile.
        """
        with _told(self.url):
            assert self._store is not None, "fetched first"
            self._claim(self._store)
            last = {name: path.read_bytes() for name in LAST if (path := self._workdir / name).is_file()}
            steps = self._whole_steps()
            for name in self._loose():
                state = (self._workdir / name).stat()
                self._send(name, (self._workdir / name).read_bytes(), (state.st_size, state.st_mtime_ns))
            for place, listed in steps.items():
                if self._steps.get(place) != listed:
                    self._send_step(self._store, place)
                    self._steps[place] = listed
            for name, content in last.items():
                self._send(name, content, content)
            for place in self._steps.keys() - steps.keys():
                self._drop(self._store, place)
                del self._steps[place]

    def _claim(self, store: "_Store") -> None:
        """Writes whose the copy is, the first time; from then on OSError if it is no longer ours."""
        if not self._token:
            self._token = uuid.uuid4().hex
            mine = {"token": self._token, "pid": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")}
            store.write(OWNER, json.dumps(mine).encode())
        elif json.loads(found := store.read(OWNER))["token"] != self._token:
            raise OSError(f"another run has taken over: {found.decode()}")

    def _loose(self) -> list[str]:
        """Names of files outside checkpoints and LAST, those first that a run is known by."""
        found = []
        for path in self._workdir.rglob("*"):
            name = path.relative_to(self._workdir)
            hidden = any(part.startswith(".") for part in name.parts)
            if path.is_file() and not hidden and name.parts[0] != _CHECKPOINTS and name.as_posix() not in LAST:
                found.append(name.as_posix())
        return sorted(found, key=lambda name: (name != CONFIG, name))

    def _whole_steps(self) -> dict[str, bytes]:
        """Manifests of the local checkpoints by place, in the order they were made."""
        found = self._workdir.glob(f"{_CHECKPOINTS}/*/*/{manifest.FILE_NAME}")
        paths = [path for path in found if path.parent.name.isdigit()]
        paths.sort(key=lambda path: (path.parent.parent.name, int(path.parent.name)))
        return {path.parent.relative_to(self._workdir).as_posix(): path.read_bytes() for path in paths}

    def _send(self, name: str, content: bytes, state: Any) -> None:
        assert self._store is not None
        if self._sent.get(name) != state:
            self._store.write(name, content)
            self._sent[name] = state

    def _send_step(self, store: "_Store", place: str) -> None:
        self._drop(store, place)  # what is there is of another save, or a part: no file of it may stay
        folder = self._workdir / place
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != manifest.FILE_NAME]
        for path in [*files, folder / manifest.FILE_NAME]:
            store.put(path, path.relative_to(self._workdir).as_posix())

    def _drop(self, store: "_Store", place: str) -> None:
        store.remove(f"{place}/{manifest.FILE_NAME}")
        store.remove(place)


class _Store:
    """Files below a URL by their names relative to it; each is replaced as a whole."""

    def __init__(self, url: str) -> None:
        import fsspec  # comes with Orbax; half a second, and only for a workdir that is a URL

        self._on_disk = url.startswith("file://")
        settings = {"auto_mkdir": True} if self._on_disk else {"use_listings_cache": False}
        try:
            self._files, root = fsspec.core.url_to_fs(url, **settings)
        except ImportError as error:
            raise ValueError(f"{url}: {error}; gs:// needs pip install 'thinkfirst[gcs]'") from error
        self._root = root.rstrip("/")

    def names(self) -> list[str]:
        """Every file's name, sorted."""
        self._files.invalidate_cache()
        found = self._files.find(self._root, detail=True)
        files = [path for path, about in found.items() if about["type"] == "file"]
        names = [path[len(self._root) :].lstrip("/") for path in files if not path.endswith(("/", _PART))]
        if strange := [name for name in names if {"", ".", ".."} & set(name.split("/"))]:
            raise ValueError(f"{self._root}: {strange[0]!r} is not the name of a file in a folder")
        return sorted(names)

    def get(self, name: str, path: pathlib.Path) -> None:
        """Copies a file here."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files.get_file(self._at(name), str(path))

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return self._files.cat_file(self._at(name))

    def put(self, path: pathlib.Path, name: str) -> None:
        """Copies a file there that nobody changes meanwhile."""
        part = self._at(name) + (_PART if self._on_disk else "")
        self._files.put_file(str(path), part)
        self._finish(part, name)

    def write(self, name: str, content: bytes) -> None:
        """Writes a file there."""
        part = self._at(name) + (_PART if self._on_disk else "")
        self._files.pipe_file(part, content)
        self._finish(part, name)

    def remove(self, name: str) -> None:
        """Removes a file, or all files of a folder; nothing need be there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(self._at(name), recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _finish(self, part: str, name: str) -> None:
        """A bucket shows an object when it is whole; on a disk a whole file is moved to its name."""
        if self._on_disk:
            os.replace(part, self._at(name))


def _step_of(name: str) -> str:
    """The checkpoint that a file is of, as "checkpoints/<stage>/<step>"; "" for any other file."""
    parts = name.split("/")
    return "/".join(parts[:3]) if parts[0] == _CHECKPOINTS and len(parts) > 3 else ""


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Whatever goes wrong on the way to a store is an OSError that names it."""
    try:
        yield
    except _faults() as error:
        raise OSError(f"{url}: {str(error) or type(error).__name__}") from error


def _faults() -> tuple[type[Exception], ...]:
    """OSError, and those of _FAULTS whose packages are in use."""
    loaded = [(sys.modules[module], name) for module, name in _FAULTS if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, name in loaded if hasattr(module, name)))
