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
_COMPUTATION_OR_ENTRY = re.compile(r"^(?:ENTRY )?%(?P<name>[\w.\-]+) \(.*?^\}", re.MULTILINE | re.DOTALL)
_MOVES_NOTHING = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id",
    "copy-start", "slice-start", "async-update", "all-reduce-start",
)  # fmt: skip
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


def program_bytes(text: str) -> int:
    """HBM bytes of a whole program: of every operation as often as the loops around it run.

    A loop whose count the compiler does not know counts as one round; of two branches the larger counts.
    """
    moved = hbm_bytes(text) | _kernel_bytes(text)
    bodies = {match["name"]: match[0] for match in re.finditer(_COMPUTATION_OR_ENTRY, text)}
    known: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in known:
            known[name] = sum(cost(match.groupdict()) for match in _INSTRUCTION.finditer(bodies[name]))
        return known[name]

    def cost(one: dict[str, str]) -> int:
        rest, opcode = one["rest"], one["opcode"]
        if opcode == "while":
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
            body = re.search(r"body=%([\w.\-]+)", rest)
            assert body is not None, one["name"]
            return of(body[1]) * (int(trips[1]) if trips else 1)
        if opcode == "conditional":
            return max(of(branch) for branch in re.findall(r"%([\w.\-]+)", rest.split("branch_computations=")[-1]))
        if opcode in ("call", "async-start"):
            called = re.search(r"(?:to_apply|calls)=%([\w.\-]+)", rest)
            return of(called[1]) if called and called[1] in bodies else 0
        return 0 if opcode in _MOVES_NOTHING else moved.get(one["name"], 0)

    return of(next(name for name, body in bodies.items() if body.startswith("ENTRY")))


def _kernel_bytes(text: str) -> dict[str, int]:
    """Custom call -> bytes of its operands and results, each once."""
    found = [match.groupdict() for match in _INSTRUCTION.finditer(text)]
    size = {one["name"]: _size(one["shape"]) for one in found}
    return {
        one["name"]: size[one["name"]] + sum(size.get(x, 0) for x in set(re.findall(r"%([\w.\-]+)", one["operands"])))
        for one in found
        if one["opcode"] == "custom-call" and "tpu_custom_call" in one["rest"]
    }


def _size(shape: str) -> int:
    """Bytes of an array or of a tuple of arrays, as far as they lie in HBM."""
    total = 0
    for array in _ARRAY.finditer(shape):
        if "S(" not in (array["layout"] or ""):
            bits = int(array["bits"] or 8)  # a predicate takes a byte
            total += math.prod(int(dim) for dim in array["dims"].split(",") if dim) * bits // 8
    return total
