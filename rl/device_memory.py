"""What a compiled program needs of a device's memory, and how much of it there is."""

import re
from typing import Any

import jax

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def compiled(lowered: Any) -> tuple[Any | None, int]:
    """(the executable, its bytes at the peak); None and what the compiler asked for where it does not fit.

    The TPU compiler makes no program that is too large for the chip; others do.  ValueError where it gave up for
    another reason.
    """
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        asked = asked_bytes(str(error))
        if asked is None:
            raise ValueError(f"the compiler gave up: {' '.join(str(error).split())[:300]}") from error
        return None, asked
    return executable, executable.memory_analysis().peak_memory_in_bytes


def asked_bytes(message: str) -> int | None:
    """What a program needs of the HBM by the compiler's error; None if the error is another."""
    found = re.search(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm|\(([\d.]+)([KMG])\) exceeds available HBM", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    number, unit = found[1] or found[3], found[2] or found[4]
    return int(float(number) * _UNITS[unit])


def limit(device: Any) -> int:
    """Bytes that programs may have of a device that is there, as it says itself."""
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        raise ValueError(f"{device.device_kind}: says nothing of its memory; name a policy, such as remat=full")
    return stats["bytes_limit"]
