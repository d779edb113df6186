"""HBM bytes that the operations of a compiled program must move, from its text: operands and results, each once.

An operation that picks parts of an operand (a gather, a slice) is counted by its results alone.
"""

import math
import re

_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<shape>.*?) (?P<opcode>[a-z][\w\-]*)"
    r"\((?P<operands>[^()]*)\)(?P<rest>.*)$",
    re.MULTILINE,
)
_ARRAY = re.compile(r"(?P<type>[a-z]+(?P<bits>\d*)[\w]*)\[(?P<dims>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?")
_COMPUTATION = re.compile(r"^%(?P<name>[\w.\-]+) \(.*?^\}", re.MULTILINE | re.DOTALL)
_PICKS = re.compile(r" (?:gather|slice|dynamic-slice|dynamic-update-slice|scatter)\(")


def hbm_bytes(text: str) -> dict[str, int]:
    """Operation -> bytes, for every one that is not a kernel of ours."""
    found = [match.groupdict() for match in _INSTRUCTION.finditer(text)]
    size = {one["name"]: _size(one["shape"]) for one in found}
    picking = {match["name"] for match in _COMPUTATION.finditer(text) if _PICKS.search(match[0])}
    moved = {}
    for one in found:
        if one["opcode"] == "custom-call":
            continue
        called = re.search(r"calls=%([\w.\-]+)", one["rest"])
        picks = _PICKS.search(f" {one['opcode']}(") or (called and called[1] in picking)
        operands = [] if picks else re.findall(r"%([\w.\-]+)", one["operands"])
        moved[one["name"]] = size[one["name"]] + sum(size.get(operand, 0) for operand in operands)
    return moved


def _size(shape: str) -> int:
    """Bytes of an array or of a tuple of arrays, as far as they lie in HBM."""
    total = 0
    for array in _ARRAY.finditer(shape):
        if "S(" not in (array["layout"] or ""):
            bits = int(array["bits"] or 8)  # a predicate takes a byte
            total += math.prod(int(dim) for dim in array["dims"].split(",") if dim) * bits // 8
    return total
