"""What a recipe takes on a TPU slice that is not there: memory, the largest micro-batch, FLOPs, bytes, time.

Memory is the compiler's: a program that is too large does not compile.  What else lies on the device meanwhile is added
(the optimiser's state during a rollout).  Time is the roofline's, an estimate from below:

    update, scoring    max(FLOPs / peak, HBM bytes / bandwidth); bytes are those of the compiled program's operations,
                       operands and results each once; FLOPs as kernels/cost/flops.py counts them
    rollout            of every turn max(2 * weights * lanes / peak, (weights + caches) / bandwidth), and prompts'
                       2 * weights * tokens / peak: every completion runs to its end, caches are read whole
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax

from thinkfirst.kernels.cost import chips, flops, hlo
from thinkfirst.models import remat as remat_lib
from thinkfirst.rl import plan_programs, scheduler, stages

SPARE = 0.98  # of the memory: what a prediction may take before it is tried
FIRST_ROWS = (8, 32)  # micro-batches compiled to see what a row takes
TRIES = 4
MOST_ROWS = 1024  # a micro-batch has a million tokens then: more is of no use to anybody
ASSUMPTIONS = (
    "every prompt and completion as long as the recipe allows",
    "matrix units at their peak, HBM at its bandwidth, whichever takes longer over a program",
    "no time for collectives, for the host, for rewards, evaluation, saving and compilation",
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


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


def compiled(traced: Any, roof: chips.Roof, *, resident: int = 0, window: int = 0, devices: int = 1) -> Program:
    """What the compiler says of a traced program."""
    counted = flops.count(traced.jaxpr.jaxpr, window=window) // devices
    return _measured(traced.lower(), roof, resident=resident, counted=counted)


def rolled_out(stage: stages.Grpo, subject: plan_programs.Trained, roof: chips.Roof, **rooms: int) -> Program:
    """The engine's program and the time of a whole rollout."""
    shape = plan_programs.engine_shape(stage, subject, **rooms)
    lowered = plan_programs.rollout(subject, shape)
    found = _measured(lowered, roof, resident=on_device(subject.opt_state), counted=0)
    weights = on_device(subject.params) + on_device(subject.adapter)
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
        found,
        flops=turns * of_turn + of_prompts,
        bytes_accessed=turns * moved,
        seconds=seconds + of_prompts / roof.flops_per_second,
    )


def largest(measure: Callable[[int], Program], limit: int) -> tuple[int, Line]:
    """(the most rows a device that fit, peak bytes by rows): two sizes, a straight line, then tried.

    A size that fits, and leaves room for another row, corrects the line; after one that does not, the next is between.
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
        if rows in (fitting, too_many):
            break
        tried = measure(rows)
        if tried.fits:
            fitting, line = rows, Line.through(begin, (rows, _needs(tried)))
        else:
            too_many = rows
    return fitting, line


def chosen(
    measure: Callable[[remat_lib.Name], Program], kept: Callable[[remat_lib.Name], int], full_bytes: float, limit: int
) -> tuple[remat_lib.Name, Program]:
    """The policy that computes the least again and still fits, and its program; "full", fit or not, if none does.

    What it needs is foretold from what "full" needs and the bytes that each keeps, and then tried.
    """
    least = kept("full")
    for name in remat_lib.NAMES[:-1]:
        if full_bytes + kept(name) - least <= SPARE * limit:
            program = measure(name)
            if program.fits:
                return name, program
    return "full", measure("full")


def on_device(tree: Any) -> int:
    """Bytes that a tree of shapes with shardings takes on one device."""
    parts = [(leaf, leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree)]
    total = 0
    for leaf, sizes in parts:
        count = 1
        for size in sizes:
            count *= size
        total += count * leaf.dtype.itemsize
    return total


def _needs(program: Program) -> int:
    return program.peak_bytes + program.resident_bytes


def _measured(lowered: Any, roof: chips.Roof, *, resident: int, counted: int) -> Program:
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        peak = asked_bytes(str(error))
        if peak is None:
            raise ValueError(f"the compiler gave up: {' '.join(str(error).split())[:300]}") from error
        return Program(
            argument_bytes=0,
            temporary_bytes=0,
            peak_bytes=peak,
            resident_bytes=resident,
            fits=False,
            over_bytes=peak + resident - roof.hbm_bytes,
            flops=counted,
            bytes_accessed=0,
            seconds=counted / roof.flops_per_second,
        )
    memory = executable.memory_analysis()
    peak, moved = memory.peak_memory_in_bytes, hlo.program_bytes(executable.as_text())
    over = max(0, peak + resident - roof.hbm_bytes)
    return Program(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=peak - memory.argument_size_in_bytes,
        peak_bytes=peak,
        resident_bytes=resident,
        fits=not over,
        over_bytes=over,
        flops=counted,
        bytes_accessed=moved,
        seconds=max(counted / roof.flops_per_second, moved / roof.hbm_bytes_per_second),
    )


def asked_bytes(message: str) -> int | None:
    """What a program needs of the HBM by the compiler's error; None if the error is another."""
    found = re.search(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm|\(([\d.]+)([KMG])\) exceeds available HBM", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    number, unit = found[1] or found[3], found[2] or found[4]
    return int(float(number) * _UNITS[unit])
