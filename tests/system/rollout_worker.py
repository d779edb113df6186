"""Rolls out on a mesh that several processes may share and prints the rows as JSON: started by rollout_test.py.

python rollout_worker.py DEVICES [COORDINATOR NUM_PROCESSES PROCESS]
"""

import json
import os
import sys

num_devices, *distributed = sys.argv[1:]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={num_devices}"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from thinkfirst.core import mesh, sharding  # noqa: E402
from thinkfirst.models import config, gemma  # noqa: E402
from thinkfirst.rl import batch, rollout  # noqa: E402

if distributed:
    coordinator, num_processes, process = distributed
    jax.distributed.initialize(coordinator, int(num_processes), int(process))
layout = mesh.make(mesh.MeshConfig(data=min(2, len(jax.devices())), fsdp=-1))
model = gemma.Model(config.demo_gemma3(), layout)
params = jax.tree.map(lambda leaf: np.asarray(leaf), model.init(0))
params = jax.device_put(params, sharding.parameters(model.letters(), params, layout))
tokens = np.random.default_rng(0).integers(4, 500, (5, 16)).astype(np.int32)
prompts = batch.Prompts(tokens, np.array([16, 3, 9, 1, 12], np.int32), np.arange(5, dtype=np.uint32))
engine = rollout.Engine(model, layout, room=24, stop_ids=tuple(range(40)), lanes=2)
found = engine.sample(params, None, prompts, batch.Sampling.of(max_new_tokens=24), jax.random.key(3), group=3)
rows = [tokens_T[:length].tolist() for tokens_T, length in zip(found.tokens_BT, found.length_B, strict=True)]
print(json.dumps({"devices": len(jax.devices()), "rows": rows, "logp": found.logp_BT.sum(axis=1).tolist()}))
