"""The policy a stage's layers keep things by: the one its config names, or with "auto" the first that fits the chip.

"auto" takes the policy that computes the least again and still fits, for rows as long as the stage allows.  Those that
keep too many bytes for the chip, beside what else is known to be there, are left out; the others are compiled, the one
that computes the least again first, until one fits.  A CPU has no memory of its own to fill: "none".
"""

import functools
from collections.abc import Callable

from thinkfirst.models import remat
from thinkfirst.rl import device_memory, plan_programs, stages

SPARE = 0.98  # of the memory: what a prediction may take before it is tried


def settled(stage: stages.Grpo | stages.Sft, subject: plan_programs.Trained, *, prompt: int = 0) -> remat.Name:
    """The policy for updates of the stage on the mesh of `subject`, prompts of GRPO being `prompt` tokens at most."""
    if stage.remat != "auto":
        return stage.remat
    device = subject.mesh.devices.flat[0]
    if device.platform == "cpu":
        return "none"
    limit = device_memory.limit(device)

    @functools.cache
    def peak(name: remat.Name) -> int:
        return device_memory.compiled(plan_programs.step(stage, subject, prompt=prompt, remat=name).lower())[1]

    def kept(name: remat.Name) -> int:
        return plan_programs.kept_bytes(stage, subject, prompt=prompt, remat=name)

    name = chosen(lambda name: peak(name) <= limit, kept, subject.num_bytes, limit)
    print(f"{stage.name}: remat=auto is {name}, {peak(name) / 1e9:.2f} GB of {limit / 1e9:.2f} a device", flush=True)
    return name


def chosen(
    fits: Callable[[remat.Name], bool], kept: Callable[[remat.Name], int], beside: int | float, limit: int
) -> remat.Name:
    """The policy that computes the least again and still fits; "full", fit or not, if none does.

    `fits` tries one, `kept` gives the bytes it keeps of the forward pass, `beside` is what is there at least besides.
    """
    for name in remat.NAMES[:-1]:
        if beside + kept(name) <= SPARE * limit and fits(name):
            return name
    return "full"
