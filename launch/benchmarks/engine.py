"""Checks numbers, then times what was checked: the demo's rollout and update on this machine, against plainer ways.

Every figure is a median over runs taken in turn (side, peer, side, peer, ...) in one process; `ratio` is peer / side.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinkfirst.core import mesh, sharding
from thinkfirst.launch.benchmarks import timing
from thinkfirst.models import config, gemma, lora
from thinkfirst.rl import batch, learner, objective, optimizer, packing, rollout

NUM_PROMPTS, GROUP, PROMPT_TOKENS, ROOM = 24, 8, 64, 64
GAP = 1e-5  # nats between engine and learner, float32


class Setting:
    """A random model of the demo's shape, prompts, and the programs to time."""

    def __init__(self) -> None:
        self.mesh = mesh.make(mesh.MeshConfig())
        self.model = gemma.Model(config.demo_gemma3(), self.mesh)
        specs = self.model.adapted()
        adapter = lora.init(specs, jax.random.key(1), rank=16, alpha=16.0)
        adapter = jax.tree.map(lambda x: x + 0.01, adapter)
        self.params = jax.device_put(self.model.init(0), sharding.replicated(self.mesh))
        self.adapter = jax.device_put(adapter, sharding.replicated(self.mesh))
        rng = np.random.default_rng(0)
        self.prompts = batch.Prompts(
            rng.integers(4, 500, (NUM_PROMPTS, PROMPT_TOKENS)).astype(np.int32),
            rng.integers(PROMPT_TOKENS // 2, PROMPT_TOKENS + 1, NUM_PROMPTS).astype(np.int32),
            np.arange(NUM_PROMPTS, dtype=np.uint32),
        )

    def sampler(self, *, group: int) -> Callable[[], batch.Rollout]:
        """Rolls out NUM_PROMPTS x GROUP rows to the limit; with group 1 every sample prefills its prompt for itself."""
        engine = rollout.Engine(self.model, self.mesh, room=ROOM, stop_ids=())
        prompts = jax.tree.map(lambda x: np.repeat(x, GROUP // group, axis=0), self.prompts)
        sampling = batch.Sampling.of(max_new_tokens=ROOM)
        return lambda: engine.sample(self.params, self.adapter, prompts, sampling, jax.random.key(7), group=group)

    def updater(self, found: batch.Rollout) -> Callable[[], Any]:
        """One optimiser step on `found`."""
        transform = optimizer.make(optimizer.OptimizerConfig(learning_rate=1e-3), 10)
        step = learner.make_step(self.model, transform, objective.LossConfig(), micro_batches=2, remat="none")
        advantage_B = np.resize(np.array([1, -1], np.float32), NUM_PROMPTS * GROUP)
        samples = batch.samples(batch.unpadded(self.prompts), found, advantage_B)
        plan = packing.one_a_row(len(samples), row_tokens=PROMPT_TOKENS + ROOM, room=ROOM)
        rows = jax.device_put(packing.experience(samples, plan), sharding.rows(self.mesh))

        def update() -> Any:
            adapter = jax.tree.map(jnp.copy, self.adapter)  # the step donates what it is given
            return jax.block_until_ready(step(adapter, transform.init(adapter), self.params, rows, jnp.float32(1.0)))

        return update


def check(update: Callable[[], Any]) -> dict[str, float]:
    """Gaps that must be small before anything is timed; ValueError if one is not."""
    found = {"engine vs learner log-prob, max": float(update()[2]["sampling/sampling_logp_difference/max"])}
    timing.require_small(found, GAP)
    return found


def run(repeats: int) -> dict[str, Any]:
    """The checks and the median seconds; ValueError, with nothing timed, if a check fails."""
    setting = Setting()
    ours, unshared = setting.sampler(group=GROUP), setting.sampler(group=1)
    update = setting.updater(ours())
    checks = check(update)
    sides = {"rollout": ours, "rollout, prompt prefilled G times": unshared}
    medians = timing.alternate({**sides, "update": update}, repeats)
    rows = NUM_PROMPTS * GROUP
    print(f"{rows} rows, {PROMPT_TOKENS} prompt and {ROOM} new tokens, {jax.device_count()} device(s)")
    for name, gap in checks.items():
        print(f"  checked  {name}: {gap:.1e}")
    for name, seconds in medians.items():
        ratio = f"  ratio {seconds / medians['rollout']:.2f}" if name.startswith("rollout,") else ""
        print(f"  {seconds:8.3f} s  {rows * ROOM / seconds:10.0f} tokens/s  {name}{ratio}")
    return {"checks": checks, "median_seconds": medians}
