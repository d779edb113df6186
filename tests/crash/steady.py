"""2,000 steps of a tiny run: memory, open files, threads and compilations, every 200 steps.

python steady.py FOLDER; prints the table of docs/log.md.  1,600 steps of SFT saved every 10, then 400 of GRPO.
"""

import dataclasses
import os
import pathlib
import sys
import threading

import jax

from thinkfirst.core import metrics
from thinkfirst.launch import recipes, train

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
)


def recipe():
    """The demo with more of smaller steps, and no evaluation."""
    demo = recipes.demo()
    sft, merge, grpo = demo.stages[1], demo.stages[3], demo.stages[4]
    sft = dataclasses.replace(sft, steps=1600, batch_size=4, num_tokens=96, save_every=10)
    grpo = dataclasses.replace(grpo, steps=400, prompts=2, group=2, micro_batches=2, max_new_tokens=16, save_every=10)
    return dataclasses.replace(demo, recipe="steady", stages=(sft, merge, grpo), cpu_devices=1)


def resident():
    """MB of resident memory."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


whole = metrics.Writer.scalars


def scalars(self, row):
    whole(self, row)
    if row["step"] % 200 == 0 or row["step"] == 1601:
        files = len(os.listdir("/proc/self/fd"))
        print(
            f"| {row['step']} | {row['stage']} | {resident():.0f} | {files} | {threading.active_count()} "
            f"| {len(os.listdir('/proc/self/task'))} | {len(compiled)} |",
            flush=True,
        )


if __name__ == "__main__":
    metrics.Writer.scalars = scalars
    recipes.RECIPES["steady"] = recipe
    print("| step | stage | resident MB | open files | Python threads | all threads | compilations |")
    sys.argv = ["train", "--recipe=steady", f"--workdir={pathlib.Path(sys.argv[1])}"]
    train.cli()
