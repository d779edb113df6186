"""Estimated cycles of a compiled program on a TPU that is not there, from libtpu's static profile.

    cycles = sum over the program's operations of max(static cycles, HBM bytes / (HBM bandwidth / clock))

libtpu unrolls the scalar control flow of each compiled operation and prices its instruction bundles and copies.  It
does not share the HBM among copies, so each Pallas call is held to the time its bytes need (`traffic`).  The profile is
asked for by an init flag, which libtpu reads once: every estimate is made by a process of its own.  The flags are
undocumented; `calibration` says how far the count may be trusted.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

from thinkfirst.kernels.cost import chips

CHILD = "thinkfirst.kernels.cost.child"
# No TPU is looked for, on this machine or in the cloud; several such processes may run at once.
QUIET = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class Unavailable(RuntimeError):
    """No estimate can be made here: libtpu is not installed."""


class ProfileError(RuntimeError):
    """The case did not compile, or libtpu's profiler gave up on one of its operations."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the compiler says of one program."""

    chip: str
    cycles: int  # of the whole program, each kernel held to its HBM time
    static_cycles: int  # the same without that
    hbm_bytes: int  # moved by the Pallas calls
    temp_bytes: int  # HBM beside operands and results
    vmem_bytes: int  # of the kernel that takes the most
    operations: dict[str, int]  # static cycles of each

    @property
    def seconds(self) -> float:
        return self.cycles / chips.named(self.chip).clock_hz


def require() -> None:
    """Raises Unavailable where there is no libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise Unavailable("libtpu is not installed: pip install 'thinkfirst[tpu]' (Linux on x86-64 only)")


def estimate(module: str, case: str, *, chip: str, variant: str = "", seconds: float = 600.0) -> Estimate:
    """The estimate of `module.CASES[case]`, or of `module.VARIANTS[case][variant]`."""
    target = chips.named(chip)
    require()
    with tempfile.TemporaryDirectory() as scratch:
        profiles = pathlib.Path(scratch, "profiles")
        profiles.mkdir()
        result = pathlib.Path(scratch, "result.json")
        request = {"module": module, "case": case, "topology": target.topology, "variant": variant}
        failure = _run({**request, "result": str(result)}, profiles, seconds)
        if failure:
            raise ProfileError(f"{case} for {chip}: {failure}")
        said = json.loads(result.read_text())
        operations = read_profiles(profiles)
    lost = [kernel for kernel in said["kernels"] if kernel not in operations]
    if lost:
        raise ProfileError(f"{case} for {chip}: libtpu gave no profile of {', '.join(lost)}")
    return summed(target, said, operations)


def summed(chip: chips.Chip, said: dict[str, Any], operations: dict[str, int]) -> Estimate:
    """The estimate from what the compiler said and the static cycles of each operation."""
    corrected = dict(operations)
    waiting = list(said["kernels"])
    for call in said["moved"]:
        # the compiled call is named after the traced one, with a number behind it
        found = next((name for name in waiting if re.fullmatch(re.escape(call["name"]) + r"(\.\d+)?", name)), None)
        if found is not None:
            waiting.remove(found)
            floor = round(call["bytes"] / chip.hbm_bytes_per_cycle)
            corrected[found] = max(corrected[found], floor)
    return Estimate(
        chip=chip.name,
        cycles=sum(corrected.values()),
        static_cycles=sum(operations.values()),
        hbm_bytes=sum(call["bytes"] for call in said["moved"]),
        temp_bytes=said["temp_bytes"],
        vmem_bytes=said["vmem_bytes"],
        operations=operations,
    )


def read_profiles(folder: pathlib.Path) -> dict[str, int]:
    """Static cycles of each operation that libtpu wrote a profile of."""
    found = {}
    for file in sorted(folder.glob("*.textproto")):
        for block in re.findall(r"hlo_op_estimate \{(.*?)\n\}", file.read_text(), re.DOTALL):
            name = re.search(r'hlo_op_name: "(.*?)"', block)
            cycles = re.search(r"estimated_cycles: (\d+)", block)
            times = re.search(r"num_equivalent_hlos: (\d+)", block)
            if name:
                found[name[1]] = (int(cycles[1]) if cycles else 0) * (int(times[1]) if times else 1)
    return found


def _run(request: dict[str, str], profiles: pathlib.Path, seconds: float) -> str:
    """Why the child failed, or "" if it did not."""
    environment = {**os.environ, **QUIET, "LIBTPU_INIT_ARGS": f"--xla_jf_dump_static_llo_profile_to={profiles}"}
    command = [sys.executable, "-P", "-m", CHILD]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no estimate within {seconds:.0f} s"
    return why(done.returncode, done.stderr) if done.returncode else ""


def why(status: int, stderr: str) -> str:
    """One line on a child that failed: the operation if the profiler names one, else the error."""
    profiler = re.search(r"Static LLO profiling of (\S+) failed: (.*)", stderr)
    if profiler:
        return f"libtpu cannot profile {profiler[1]}: {profiler[2]}"
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|RESOURCE_EXHAUSTED)\b.*", stderr, re.MULTILINE)
    last = errors[-1] if errors else (stderr.strip().splitlines() or ["it said nothing"])[-1]
    return f"exit status {status}: {last}"
