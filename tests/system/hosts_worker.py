"""thinkfirst-train on a toy recipe, on some devices of some hosts: started by hosts_test.py.

python hosts_worker.py DEVICES FAULT [train's flags]

FAULT is "none", or what happens on one host: "SIGTERM:HOST", "SIGKILL:HOST" or "reward:HOST" in the rewards of step 2.
"""

import os
import signal
import sys

num_devices, fault, *line = sys.argv[1:]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={num_devices}"

import jax  # noqa: E402

from thinkfirst.core import mesh  # noqa: E402
from thinkfirst.launch import recipes, show_work, train  # noqa: E402
from thinkfirst.rl import curriculum, grading, optimizer, overlong, pipeline, rollout, stages  # noqa: E402
from thinkfirst.rl.data import source  # noqa: E402


def toy() -> stages.RunConfig:
    """Two steps of SFT, a merge, three of GRPO with two iterations, paid for being brief; an evaluation."""
    rate = optimizer.OptimizerConfig(learning_rate=1e-3)
    return stages.RunConfig(
        recipe="toy",
        checkpoint=str(recipes.DEMO_BASE),
        data=source.DataConfig(held_out=3),
        max_prompt_tokens=64,
        mesh=mesh.MeshConfig(data=-1),
        stages=(
            stages.Sft(rate, stages.LoraConfig(rank=2), steps=2, batch_size=8, num_tokens=96, save_every=1),
            stages.Merge(),
            stages.Grpo(
                optimizer=rate,
                lora=stages.LoraConfig(rank=2),
                phases=(curriculum.Phase("easy", 0, ("easy",)),),
                rewards=show_work.rewards(over=3),
                overlong=overlong.OverlongConfig(buffer=12, penalty=0.2),
                steps=3,
                prompts=8,
                group=2,
                micro_batches=2,
                num_iterations=2,
                max_new_tokens=16,
                save_every=3,
            ),
            stages.Evaluate("grpo", "evaluate_grpo", samples=2, max_new_tokens=16),
        ),
    )


def faulty(kind: str, host: int) -> None:
    whole = grading.Grader.__call__

    def graded(self, rows, *, step, phase):
        if step == 2 and jax.process_index() == host:
            if kind == "reward":
                raise ValueError("this judge is out of order")
            os.kill(os.getpid(), getattr(signal, kind))
        return whole(self, rows, step=step, phase=phase)

    grading.Grader.__call__ = graded


rollout.PAUSE_TURNS = 4
rollout.Engine._shares = lambda *_, **__: {}
pipeline.report.write = lambda workdir: None
recipes.RECIPES["toy"] = toy
if fault != "none":
    faulty(fault.partition(":")[0], int(fault.partition(":")[2]))
sys.argv = ["train", "--recipe=toy", *line]
train.cli()
