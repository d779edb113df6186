"""What a recipe takes on a TPU slice that is not there: memory, the largest micro-batch, FLOPs, bytes, time.

Memory is the compiler's: a program that is too large does not compile.  What else lies on the device meanwhile is added
(the optimiser's state during a rollout).  Time is the roofline's, an estimate from below:

    update, scoring    max(FLOPs / peak, HBM bytes / bandwidth); bytes are those of the compiled program's operations,
                       operands and results each once; FLOPs as kernels/cost/flops.py counts them
    rollout            of every turn max(2 * weights * lanes / peak, (weights + caches) / bandwidth), and prompts'
                       2 * weights * tokens / peak: every completion runs to its end, caches are read whole
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from thinkfirst.kernels.cost import chips, flops
from thinkfirst.rl import plan_cache, plan_programs, scheduler, stages

FIRST_ROWS = (8, 32)  # micro-batches compiled to see what a row takes
TRIES = 4
NEAR = 50  # a fiftieth more rows is not worth a try
MOST_ROWS = 1024  # a micro-batch has a million tokens then: more is of no use to anybody
ASSUMPTIONS = (
    "every prompt and completion as long as the recipe allows",
    "matrix units at their peak, HBM at its bandwidth, whichever takes longer over a program",
    "no time for collectives, for the host, for rewards, evaluation, saving and compilation",
)


@dataclasses.dataclass(frozen=True)
class Program:
    """One program on one device; the bytes of one that does not fit are those the compiler asked for."""

    argument_bytes: int
    temporary_bytes: int  # at the peak, beside the arguments
    peak_bytes: int
    resident_bytes: int  # on the device meanwhile, and no argument
    fits: bool
    over_bytes: int  # how much too large, 0 if it fits
    flops: int
    bytes_accessed: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Line:
    """Peak bytes by rows a device: base + rows * slope."""

    base: float
    slope: float

    @classmethod
    def through(cls, first: tuple[int, int], second: tuple[int, int]) -> "Line":
        slope = (second[1] - first[1]) / (second[0] - first[0])
        return cls(first[1] - slope * first[0], slope)

    def at(self, rows: int) -> float:
        return self.base + self.slope * rows

    def most(self, size: int) -> int:
        """The most rows that take no more than `size`."""
        return int((size - self.base) // self.slope)


def flops_of(traced: Any, subject: plan_programs.Trained) -> int:
    """FLOPs of a traced program on one device."""
    return flops.count(traced.jaxpr.jaxpr, window=subject.model.config.window) // subject.mesh.size


def compiled(
    traced: Any,
    roof: chips.Roof,
    *,
    counted: int,
    resident: int = 0,
    cache: pathlib.Path | None = None,
) -> Program:
    """What the compiler says of a traced program of `counted` FLOPs, or said before (`cache`, see rl/plan_cache.py)."""
    asked = plan_cache.compiled(traced.lower(), roof.name, cache)
    moved = asked.bytes_accessed
    over = max(0, asked.peak_bytes + resident - roof.hbm_bytes)
    return Program(
        argument_bytes=asked.argument_bytes,
        temporary_bytes=asked.peak_bytes - asked.argument_bytes if asked.made else 0,
        peak_bytes=asked.peak_bytes,
        resident_bytes=resident,
        fits=asked.made and not over,
        over_bytes=over,
        flops=counted,
        bytes_accessed=moved,
        seconds=max(counted / roof.flops_per_second, moved / roof.hbm_bytes_per_second),
    )


def rolled_out(
    stage: stages.Grpo, subject: plan_programs.Trained, shape: scheduler.Shape, roof: chips.Roof, program: Program
) -> Program:
    """The engine's `program`, with the work and the time of a whole rollout."""
    weights = plan_programs.on_device(subject.params) + plan_programs.on_device(subject.adapter)
    count = sum(leaf.size for leaf in jax.tree.leaves((subject.params, subject.adapter)))
    caches = jax.eval_shape(lambda: scheduler.empty(subject.model, shape))
    cached = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((caches.own, caches.resident)))
    tensor = subject.mesh.size // subject.shards
    rows = -(-stage.prompts // subject.shards) * stage.group
    turns = -(-rows // shape.lanes) * stage.max_new_tokens
    prompts = -(-stage.prompts // subject.shards) * shape.rooms.prompt
    of_turn, of_prompts = 2 * count * shape.lanes // tensor, 2 * count * prompts // tensor
    moved = weights + cached // tensor
    seconds = turns * max(of_turn / roof.flops_per_second, moved / roof.hbm_bytes_per_second)
    return dataclasses.replace(
        program,
        flops=turns * of_turn + of_prompts,
        bytes_accessed=turns * moved,
        seconds=seconds + of_prompts / roof.flops_per_second,
    )


def largest(measure: Callable[[int], Program], limit: int) -> tuple[int, Line]:
    """(the most rows a device that fit, peak bytes by rows): two sizes, a straight line, then tried.

    Whatever was tried corrects the line, also a size that does not fit: the compiler says what it asked for.  For two
    rows more in a hundred nothing is compiled.
    """
    known = {rows: measure(rows) for rows in FIRST_ROWS}
    fitting = max((rows for rows, program in known.items() if program.fits), default=0)
    too_many = min((rows for rows, program in known.items() if not program.fits), default=None)
    begin, *_, end = ((rows, _needs(program)) for rows, program in known.items())
    line = Line.through(begin, end)
    for _ in range(TRIES):
        rows = max(fitting, min(line.most(limit), MOST_ROWS))
        if too_many is not None:
            rows = min(rows, fitting + max(1, 3 * (too_many - fitting) // 4))
        if rows == too_many or rows - fitting <= fitting // NEAR:
            break
        tried = measure(rows)
        end = (rows, _needs(tried))
        if tried.fits:
            fitting, line, begin = rows, Line.through(begin, end), end
        else:
            too_many, line = rows, Line.through(begin, end)
    return fitting, line


def _needs(program: Program) -> int:
    return program.peak_bytes + program.resident_bytes
