"""Block sizes of the kernels: what a search found for this chip and these shapes, else the kernel's own default.

block_sizes/<chip>.json holds op -> shapes -> sizes; `bench --suite=kernels --search` writes it, and a kernel looks up
by `sizes` what it is traced for.  Only sizes that a search found better than the default by more than a hair are there.
"""

import dataclasses
import functools
import json
import pathlib

from thinkfirst.kernels import placement

FOLDER = pathlib.Path(__file__).with_name("block_sizes")
# JAX's device kind, which runtimes spell in two ways -> file
CHIPS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}

Sizes = dict[str, int]


@dataclasses.dataclass(frozen=True)
class Search:
    """What `bench --search` tries for a case: an entry of SEARCH (case -> Search) in a module `cases*` of a kernel."""

    op: str  # as the kernel gives it to `sizes`
    choices: tuple[Sizes, ...]
    counts: str = ""  # the case that is counted, where another stands for it: a smaller one, say


def sizes(op: str, shapes: str, default: Sizes) -> Sizes:
    """The sizes that `op` takes for `shapes` on the chip that is being traced for; `default` where none are known."""
    return {**default, **table(CHIPS.get(placement.device_kind(), "")).get(op, {}).get(shapes, {})}


@functools.cache
def table(chip: str) -> dict[str, dict[str, Sizes]]:
    """Op -> shapes -> sizes that were found for the chip; nothing for a chip without a file."""
    file = FOLDER / f"{chip}.json"
    return json.loads(file.read_text()) if file.is_file() else {}
