"""What a folder of a checkpoint holds, file by file, so that a changed byte is found before it is believed.

    MANIFEST.json    {"step": 40, "files": {"meta.json": {"bytes": 310, "sha256": "..."}, ...}, "sha256": "..."}

It is written last: a folder without one is no checkpoint.  Its own digest is that of all it says.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

FILE_NAME = "MANIFEST.json"


class Damaged(ValueError):
    """A file of a checkpoint that is not what was written; the message names it."""


def write(folder: pathlib.Path, step: int) -> None:
    """Lists every file of a folder, with its size and digest; all of them are on the disk when this returns."""
    files: dict[str, Any] = {}
    for path in _files(folder):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    content = {"step": step, "files": files}
    content["sha256"] = _digest(content)
    with open(folder / FILE_NAME, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def verify(folder: pathlib.Path, step: int) -> None:
    """Raises Damaged for the first file that is missing, changed, cut short, not listed, or of another step."""
    listed = _read(folder)
    if listed["step"] != step:
        raise Damaged(f"{folder / FILE_NAME}: this is step {listed['step']}, in the folder of step {step}")
    there = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    if unlisted := sorted(there.keys() - listed["files"].keys()):
        raise Damaged(f"{folder / unlisted[0]}: a file that {FILE_NAME} does not list")
    for name, wanted in listed["files"].items():
        if name not in there:
            raise Damaged(f"{folder / name}: the file is missing")
        size = there[name].stat().st_size
        if size != wanted["bytes"]:
            raise Damaged(f"{folder / name}: {size} bytes, and {wanted['bytes']} were written")
        with open(there[name], "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != wanted["sha256"]:
                raise Damaged(f"{folder / name}: its sha256 is not that of what was written")


def sync_folder(folder: pathlib.Path) -> None:
    """What a folder lists, and under which names, is on the disk when this returns."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / FILE_NAME
    try:
        content = json.loads(path.read_bytes())
        told = content.pop("sha256")
        sound = told == _digest(content)
    except FileNotFoundError:
        raise Damaged(f"{path}: the file is missing: the save was not finished") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Damaged(f"{path}: not the manifest of a checkpoint: {error}") from error
    if not sound:
        raise Damaged(f"{path}: its own sha256 is not that of what it says")
    return content


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Every file but the manifest, links and all, in order."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path for path in paths if path != folder / FILE_NAME)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
