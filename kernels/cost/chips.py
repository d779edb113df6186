"""The TPU chips that estimates are made for.

Clocks are those that give the published peak of each chip: 131,072 FLOP a cycle and core on v5e and v5p, 524,288 on
v6e.
"""

import dataclasses


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
