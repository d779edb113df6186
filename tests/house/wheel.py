"""The wheel holds the whole package and nothing else, and works away from the checkout.  `make wheel-check`."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

from house import source, write_build

# Imported only where a GPU kernel is called (the extra `gpu` brings Triton), and run by environments of the peers' own.
NEEDS_MORE = re.compile(r"\.triton_source$|\.benchmarks\.peers\.")
# Run by a Python that stands in another folder and finds the unpacked wheel first on its path.
IMPORT_ALL = """
import importlib, importlib.metadata, pathlib, sys
site, names = pathlib.Path(sys.argv[1]), sys.argv[2:]
for name in names:
    file = importlib.import_module(name).__file__
    assert pathlib.Path(file).is_relative_to(site), f"{name} came from {file}, not from the wheel"
(wheel,) = importlib.metadata.distributions(name="thinkfirst", path=[str(site)])
for script in wheel.entry_points.select(group="console_scripts"):
    assert callable(script.load()), script
"""


def build(folder: pathlib.Path) -> pathlib.Path:
    """A wheel built from a clean slate: setuptools would ship what an earlier build left behind."""
    scratch = source.ROOT / ".build"
    for left_over in (scratch / "lib", *scratch.glob("bdist.*")):
        shutil.rmtree(left_over, ignore_errors=True)
    command = [sys.executable, "-P", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*command, source.ROOT], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the wheel does not build:\n{done.stdout}\n{done.stderr}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def expected() -> set[str]:
    """Every module of the tree, and the data files beside them."""
    data = [path for layer in source.LAYERS for path in source.data(layer)]
    return {f"{source.PACKAGE}/{path}" for path in [*data, *(module.path for module in source.modules())]}


def scripts() -> set[str]:
    """The commands that the programs of launch/ should have."""
    programs = filter(write_build.is_program, source.modules())
    return {f"thinkfirst-{program.name.rpartition('.')[2]}" for program in programs}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        site = pathlib.Path(scratch, "site").resolve()
        wheel = build(pathlib.Path(scratch))
        with zipfile.ZipFile(wheel) as archive:  # a pure Python wheel is installed by unpacking it
            archive.extractall(site)
        (info,) = site.glob("*.dist-info")
        shipped = {file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()}
        shipped = {path for path in shipped if not path.startswith(info.name)}
        problems = [f"not in the wheel: {path}" for path in sorted(expected() - shipped)]
        problems += [f"should not be in the wheel: {path}" for path in sorted(shipped - expected())]
        lines = (info / "entry_points.txt").read_text().splitlines()
        declared = {line.partition("=")[0].strip() for line in lines if line.startswith("thinkfirst-")}
        problems += [f"setup.py and launch/ disagree on the command {name}" for name in sorted(declared ^ scripts())]
        if problems:
            raise SystemExit("\n".join(problems))
        names = [module.name for module in source.modules() if not NEEDS_MORE.search(module.name)]
        environment = {**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-P", "-c", IMPORT_ALL, str(site), *names]
        if subprocess.run(command, cwd=scratch, env=environment, check=False).returncode:
            raise SystemExit("the wheel does not import away from the checkout")
        print(f"{wheel.name}: {len(names)} modules, all imported away from the checkout; {len(declared)} commands")


if __name__ == "__main__":
    main()
