"""Loads a checkpoint in a process of its own and prints, as JSON, what that took: started by loading_test.py.

python loading_worker.py FOLDER DEVICES [COORDINATOR NUM_PROCESSES PROCESS]
"""

import json
import os
import sys

folder, num_devices, *distributed = sys.argv[1:]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={num_devices}"

import jax  # noqa: E402

from thinkfirst.core import mesh, sharding  # noqa: E402
from thinkfirst.models import gemma, weights  # noqa: E402


def peak() -> int:
    """Largest resident size so far in bytes (VmHWM of /proc/self/status): everything, device buffers included."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if distributed:
    coordinator, num_processes, process = distributed
    jax.distributed.initialize(coordinator, int(num_processes), int(process))
model = gemma.Model(weights.config(folder))
grid = mesh.make(mesh.MeshConfig(data=1, fsdp=-1))
layout = sharding.parameters(model.letters(), model.shapes(), grid)
jax.block_until_ready(jax.device_put(1.0, jax.local_devices()[0]))
before = peak()
params = weights.load(folder, model, layout)
kept = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
print(json.dumps({"before": before, "peak": peak(), "kept": kept, "devices": len(jax.devices())}))
