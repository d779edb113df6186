"""Compiles one case for a chip that is not there, in a process of its own: libtpu reads its flags once.

Reads a request {"module", "case", "trial", "topology", "result"} as JSON from standard input and writes what the
compiler says of the program to the file `result`.  A trial {"op", "sizes"} puts block sizes in the place of those the
kernel would take.  The static profile itself is written by libtpu, to where LIBTPU_INIT_ARGS says.
"""

import importlib
import json
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies

from thinkfirst.kernels import blocks
from thinkfirst.kernels.cost import hlo, traffic


def placed(operands: Any, device: Any) -> Any:
    """The same shapes, on that device."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), operands)


def described(module: str, case: str, trial: dict[str, Any] | None, topology: str) -> dict[str, Any]:
    """What the compiler says of the case: memory, bytes and names of its kernels, block sizes looked up."""
    device: Any = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    cases = importlib.import_module(module)
    function, operands = cases.CASES[case]()
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    # so that a kernel which asks pltpu.get_tpu_info() hears of this chip
    abstract = jax.sharding.AbstractDevice(
        device_kind=device.device_kind, num_cores=getattr(device, "num_cores", 1), platform="tpu"
    )
    asked: list[tuple[str, str]] = []
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=abstract)
    with jax.sharding.use_abstract_mesh(mesh), mock.patch.object(blocks, "sizes", _looked_up(trial, asked)):
        traced = jitted.trace(*placed(operands, device))
        compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    kernels = re.findall(r"%?([\w.\-]+) = [^\n]*custom_call_target=\"tpu_custom_call\"", text)
    vmem = re.findall(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"', text)
    with jax.default_device(jax.devices("cpu")[0]):
        moved = [
            {"name": eqn.params["name"] or "", "bytes": traffic.hbm_bytes(eqn)}
            for eqn in traffic.pallas_calls(traced.jaxpr.jaxpr)
        ]
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "vmem_bytes": max(map(int, vmem), default=0),
        "kernels": kernels,
        "moved": moved,
        "moved_by_xla": hlo.hbm_bytes(text),
        "looked_up": sorted(set(asked)),
    }


def _looked_up(trial: dict[str, Any] | None, asked: list[tuple[str, str]]) -> Callable[..., blocks.Sizes]:
    """`blocks.sizes`, but it notes what it is asked for and gives the op of the trial the sizes on trial."""
    known = blocks.sizes

    def sizes(op: str, shapes: str, default: blocks.Sizes) -> blocks.Sizes:
        asked.append((op, shapes))
        return {**default, **trial["sizes"]} if trial and trial["op"] == op else known(op, shapes, default)

    return sizes


def main() -> None:
    """Answers the request on standard input."""
    request = json.load(sys.stdin)
    result = pathlib.Path(request.pop("result"))
    result.write_text(json.dumps(described(**request)))


if __name__ == "__main__":
    main()
