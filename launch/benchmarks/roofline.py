"""How near a time is to what the device allows: the share of its peaks that a program reached, on a chip we know."""

from typing import Any

from thinkfirst.kernels import blocks, placement
from thinkfirst.kernels.cost import chips, flops, hlo

# Beside the TPUs of kernels/cost/chips.py; NVIDIA's figures for dense bfloat16.
OTHERS = {"NVIDIA H200": chips.Roof("H200", 989.5e12, 4800e9, 141 * 10**9), "TPU v4": chips.ROOFS["v4"]}


def roof() -> chips.Roof | None:
    """That of this machine's devices; None where nobody published one, as for a CPU."""
    kind = placement.device_kind()
    return OTHERS.get(kind) or (chips.ROOFS[blocks.CHIPS[kind]] if kind in blocks.CHIPS else None)


def fraction(
    known: chips.Roof | None, *, num_flops: int | float, num_bytes: int | float, seconds: float
) -> float | None:
    """The least that so many FLOPs and bytes can take on one device, by the seconds they took."""
    if known is None:
        return None
    return max(num_flops / known.flops_per_second, num_bytes / known.hbm_bytes_per_second) / seconds


def of_program(traced: Any, executable: Any, *, window: int, devices: int, seconds: float) -> float | None:
    """`fraction` of a traced and compiled program, whose FLOPs and bytes are only counted where there is a roof."""
    if (known := roof()) is None:
        return None
    counted = flops.count(traced.jaxpr.jaxpr, window=window) / devices
    moved = hlo.program_bytes(executable.as_text())
    return fraction(known, num_flops=counted, num_bytes=moved, seconds=seconds)
