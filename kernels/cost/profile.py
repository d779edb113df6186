"""Estimated cycles of a compiled program on a TPU that is not there, from libtpu's static profile.

    cycles = sum over the program's operations of max(static cycles, HBM bytes / (HBM bandwidth / clock))

libtpu unrolls the scalar control flow of each compiled operation and prices its instruction bundles and copies.  It
does not share the HBM among copies, so each operation is held to the time that its bytes need (`traffic` for Pallas
calls, `hlo` for others).  The profile is asked for by an init flag, which libtpu reads once: every estimate is made by
a process of its own.  The flags are undocumented; `calibration` says how far the count may be trusted.
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
# XLA would keep some operands in VMEM; the profiler misprices such copies, or gives up.  v5e and v5p, then v6e.
ALL_IN_HBM = "--xla_vf_vmem_memory_space_assignment=false --xla_gf_vmem_memory_space_assignment=false"
# Of all that libtpu can dump, the report on VMEM alone: the whole is half a gigabyte for an attention kernel.
REPORT_ONLY = "--xla_jf_dump_llo_pass_label_regex=vmem_report --xla_jf_dump_hlo_text=false"
# Nothing is taken from a cache, for only what is compiled is profiled.
ALONE = {**chips.ALONE, "JAX_ENABLE_COMPILATION_CACHE": "false"}


class Unavailable(RuntimeError):
    """No estimate can be made here: libtpu is not installed."""


class ProfileError(RuntimeError):
    """The case did not compile, or libtpu's profiler gave up on one of its operations."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the compiler says of one program."""

    cycles: int  # of the whole program, each operation held to its HBM time
    static_cycles: int  # the same without that
    kernel_cycles: int  # of the Pallas calls alone
    hbm_bytes: int  # moved by the Pallas calls
    temp_bytes: int  # HBM beside operands and results
    vmem_bytes: int  # of the kernel that takes the most
    spill_bytes: int  # of VMEM for spilled vector registers, of the kernel that spills the most
    operations: dict[str, int]  # cycles of each
    looked_up: list[list[str]]  # (op, shapes) whose block sizes the program asked for


def require() -> None:
    """Raises Unavailable where there is no libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise Unavailable("libtpu is not installed: pip install 'thinkfirst[tpu]' (Linux on x86-64 only)")


def estimate(module: str, case: str, *, chip: str, trial: dict | None = None, seconds: float = 900.0) -> Estimate:
    """The estimate of `module.CASES[case]`; a `trial` {"op", "sizes"} gives one of its kernels other block sizes."""
    target = chips.named(chip)
    require()
    with tempfile.TemporaryDirectory() as scratch:
        said = _asked(module, case, trial, target, profiles=scratch, seconds=seconds)
        operations = read_profiles(pathlib.Path(scratch))
        spills = read_spills(pathlib.Path(scratch))
    lost = [kernel for kernel in said["kernels"] if kernel not in operations or kernel not in spills]
    if lost:
        raise ProfileError(f"{case} for {chip}: libtpu gave no profile, or no report on VMEM, of {', '.join(lost)}")
    return summed(target, said, operations, spills)


def temp_bytes(module: str, case: str, *, chip: str, seconds: float = 900.0) -> int:
    """HBM that the case needs beside operands and results, from compiling it alone."""
    target = chips.named(chip)
    require()
    return _asked(module, case, None, target, profiles="", seconds=seconds)["temp_bytes"]


def summed(chip: chips.Chip, said: dict[str, Any], static: dict[str, int], spills: dict[str, int]) -> Estimate:
    """The estimate from what the compiler said, and the static cycles and the spilled bytes of each operation."""
    operations = dict(static)
    by_pallas = bytes_of_kernels(said["kernels"], said["moved"])
    for name, size in {**said["moved_by_xla"], **by_pallas}.items():
        if name in operations:
            operations[name] = max(operations[name], round(size / chip.hbm_bytes_per_cycle))
    return Estimate(
        cycles=sum(operations.values()),
        static_cycles=sum(static.values()),
        kernel_cycles=sum(operations[name] for name in by_pallas),
        hbm_bytes=sum(by_pallas.values()),
        temp_bytes=said["temp_bytes"],
        vmem_bytes=said["vmem_bytes"],
        spill_bytes=max((spills[name] for name in by_pallas), default=0),
        operations=operations,
        looked_up=said["looked_up"],
    )


def bytes_of_kernels(kernels: list[str], calls: list[dict[str, Any]]) -> dict[str, int]:
    """Compiled kernel -> bytes, by the names of the Pallas calls they come from.

    A call `flash` becomes `flash.1`, and differentiated `jvp_flash_.1` or `transpose_jvp_flash__.1`.
    """
    waiting = sorted(calls, key=lambda call: -len(call["name"]))  # a name may be the end of a longer one
    found = {}
    for kernel in kernels:
        call = next(
            (x for x in waiting if re.fullmatch(rf"(\w+_)?{re.escape(x['name'])}_*(\.\d+)?", kernel) and x["name"]),
            None,
        )
        if call is None:
            raise ProfileError(f"the kernel {kernel} comes from no Pallas call that has a name: give it one")
        waiting.remove(call)
        found[kernel] = call["bytes"]
    return found


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


def read_spills(folder: pathlib.Path) -> dict[str, int]:
    """Bytes of VMEM that spilled vector registers of each operation take, 4 KiB apiece, from the report on VMEM."""
    found = {}
    for file in folder.glob("*vmem_report.html"):
        text = file.read_text()
        data = re.search(r"DATA\s*=\s*(?=\{)", text)
        if data is None:
            raise ProfileError("libtpu's report on VMEM is not of the form that is read here")
        report, _ = json.JSONDecoder().raw_decode(text[data.end() :])
        for name, operation in report["hlo_breakdowns"].items():
            allocations = (allocation for block in operation["blocks"] for allocation in block["allocations"])
            found[name] = sum(one["size"] for one in allocations if one.get("tag") == "SPILL")
    return found


def why(status: int, stderr: str) -> str:
    """One line on a child that failed: the operation if libtpu names one, else the error."""
    profiler = re.search(r"Static LLO profiling of (\S+) failed: (.*)", stderr)
    if profiler:
        return f"libtpu cannot profile {profiler[1]}: {profiler[2]}"
    crash = re.search(r"Check failed: (.{1,200})", stderr)
    if crash:
        operation = re.search(r"in HLO \[(\S+?)\]", stderr)
        return f"libtpu gave up{f' on {operation[1]}' if operation else ''}: {crash[1]}"
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|RESOURCE_EXHAUSTED)\b.*", stderr, re.MULTILINE)
    last = errors[-1] if errors else (stderr.strip().splitlines() or ["it said nothing"])[-1]
    return f"exit status {status}: {last}"


def _asked(
    module: str, case: str, trial: dict | None, chip: chips.Chip, *, profiles: str, seconds: float
) -> dict[str, Any]:
    """What the child says of the case; it profiles into the folder `profiles`, if one is given."""
    flags = ALL_IN_HBM
    if profiles:
        flags += f" --xla_jf_dump_static_llo_profile_to={profiles} --xla_jf_dump_to={profiles} {REPORT_ONLY}"
    with tempfile.TemporaryDirectory() as scratch:
        result = pathlib.Path(scratch, "result.json")
        request = {"module": module, "case": case, "trial": trial, "topology": chip.topology, "result": str(result)}
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", CHILD],
                input=json.dumps(request),
                env={**os.environ, **ALONE, "LIBTPU_INIT_ARGS": flags},
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ProfileError(f"{case} for {chip.name}: nothing within {seconds:.0f} s") from None
        if done.returncode:
            raise ProfileError(f"{case} for {chip.name}: {why(done.returncode, done.stderr)}")
        return json.loads(result.read_text())
