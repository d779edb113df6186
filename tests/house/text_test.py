"""No file of the repository names a path of the machine it was written on."""

import re
import subprocess

from house import source

# A root folder that is somebody's own, then a name; not inside a longer path or an address.
MACHINE_PATH = re.compile(r"(?<![\w.~/$}-])/(?:home|Users|root|work|mnt|srv|scratch)/[\w.-]+|\b[A-Z]:\\Users\\")
LARGEST = 2_000_000


def machine_paths(path: str, text: str) -> list[str]:
    return [
        f"{path}:{number}: {match[0]}"
        for number, line in enumerate(text.splitlines(), start=1)
        for match in MACHINE_PATH.finditer(line)
    ]


def text_files() -> dict[str, str]:
    """Every file that git tracks or would, or outside a repository every file not in a hidden folder; text only."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [path for path in listed.stdout.split("\0") if path]
    else:
        files = (file.relative_to(source.ROOT) for file in source.ROOT.rglob("*") if file.is_file())
        paths = [file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts[:-1])]
    found = {}
    for path in paths:
        file = source.ROOT / path
        if file.is_file() and file.stat().st_size <= LARGEST:
            content = file.read_bytes()
            if b"\0" not in content:
                found[path] = content.decode("utf-8", errors="replace")
    return found


def test_no_file_names_a_path_of_one_machine():
    files = text_files()
    assert "setup.py" in files
    source.expect_none(finding for path, text in files.items() for finding in machine_paths(path, text))


def test_a_machine_path_is_found():
    slash = "/"
    for folder in ("home/alice", "Users/alice/x", "root/.cache", "work/project"):
        assert machine_paths("a.md", f"see {slash}{folder}"), folder
        assert machine_paths("a.py", f'open("{slash}{folder}")'), folder
    for fine in ("https://example.org/home/alice", "gs://bucket/work/run", "docs/work/plan.md", "/kaggle/working/run"):
        assert not machine_paths("a.md", fine), fine
