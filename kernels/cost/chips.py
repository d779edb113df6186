"""The TPU chips that estimates are made for: of kernels, by cycles (CHIPS), and of programs, by the roofline (ROOFS).

Clocks are those that give the published peak of each chip: 131,072 FLOP a cycle and core on v5e and v5p, 524,288 on
v6e.
"""

import dataclasses

# The environment of a process that compiles for chips which are not there: no TPU is looked for, on this machine or in
# the cloud, and several such processes may run at once.
ALONE = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What turns bytes into cycles and cycles into seconds."""

    name: str
    topology: str  # the smallest one that libtpu compiles for
    clock_hz: float
    hbm_bytes_per_second: float

    @property
    def hbm_bytes_per_cycle(self) -> float:
        return self.hbm_bytes_per_second / self.clock_hz


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "v5e:2x2", 1.5e9, 819e9),
        Chip("v5p", "v5p:2x2x1", 1.75e9, 2765e9),
        Chip("v6e", "v6e:2x2", 1.75e9, 1640e9),
    )
}


def named(name: str) -> Chip:
    """The chip of that name; ValueError lists those there are."""
    if name not in CHIPS:
        raise ValueError(f"no estimates for the chip {name!r}; there are {', '.join(CHIPS)}")
    return CHIPS[name]


@dataclasses.dataclass(frozen=True)
class Roof:
    """Peaks of one device as JAX counts them: a chip, or one of the two halves of a v4 or tpu7x.

    Rates are those that Google publishes; `hbm_bytes` is what the compiler lets a program have.
    """

    name: str
    flops_per_second: float  # bfloat16
    hbm_bytes_per_second: float
    hbm_bytes: int


ROOFS = {
    roof.name: roof
    for roof in (
        Roof("v4", 137.5e12, 614e9, int(15.25 * 2**30)),
        Roof("v5e", 197e12, 819e9, int(15.75 * 2**30)),
        Roof("v5p", 459e12, 2765e9, int(95.74 * 2**30)),
        Roof("v6e", 918e12, 1640e9, int(31.25 * 2**30)),
        Roof("tpu7x", 1153.5e12, 3690e9, int(94.75 * 2**30)),
    )
}


def roof(topology: str) -> Roof:
    """The roof of the chips of a slice such as "v5e:2x4"; ValueError lists those there are."""
    name = topology.partition(":")[0]
    if name not in ROOFS:
        raise ValueError(f"topology {topology!r}: there is {', '.join(ROOFS)}, each with a shape, such as v5e:2x4")
    return ROOFS[name]
