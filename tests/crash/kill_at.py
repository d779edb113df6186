"""thinkfirst-train on a toy recipe, which sends itself a signal at a named point: started by harness.py.

python kill_at.py POINT NTH SIGNAL FOLDER [train's flags]

The program is the real one.  Here its functions are wrapped so that the signal comes the NTH time that the point is
reached in this process; POINT "none" runs on to the end.  FOLDER holds train.jsonl and eval.jsonl.
"""

import functools
import os
import pathlib
import signal
import sys
import threading
import time

from thinkfirst.core import checkpoint, manifest, metrics
from thinkfirst.launch import recipes, show_work, train
from thinkfirst.rl import (
    curriculum,
    evaluate,
    grading,
    learner,
    optimizer,
    overlong,
    pipeline,
    policy,
    rollout,
    sft,
    stages,
)
from thinkfirst.rl.data import source


def toy(folder):
    """Four steps of SFT in epochs of three, a merge, five of GRPO with two iterations, an evaluation.

    What GRPO is paid for is to be brief: nothing else tells its samples apart so early.
    """
    rate = optimizer.OptimizerConfig(learning_rate=1e-2)
    return stages.RunConfig(
        recipe="toy",
        checkpoint=str(recipes.DEMO_BASE),
        data=source.DataConfig(kind="jsonl", train=f"{folder}/train.jsonl", eval=f"{folder}/eval.jsonl"),
        max_prompt_tokens=64,
        cpu_devices=2,
        keep=checkpoint.Keep(last=2, best=1, every=0),
        stages=(
            stages.Sft(
                rate, stages.LoraConfig(rank=2), steps=4, batch_size=4, num_tokens=64, micro_batches=2, save_every=1
            ),
            stages.Merge(),
            stages.Grpo(
                optimizer=rate,
                lora=stages.LoraConfig(rank=2),
                phases=(curriculum.Phase("easy", 2, ("easy",)), curriculum.Phase("mixed", 0, ("easy", "medium"))),
                rewards=show_work.rewards(over=3),
                steps=5,
                prompts=4,
                group=2,
                micro_batches=2,
                num_iterations=2,
                max_new_tokens=16,
                overlong=overlong.OverlongConfig(buffer=12, penalty=0.2),
                save_every=2,
            ),
            stages.Evaluate("grpo", "evaluate_grpo", samples=2, max_new_tokens=16),
        ),
    )


class Trigger:
    """Sends the signal when it has been pulled NTH times."""

    def __init__(self, nth, number):
        self.left, self.number = nth, number

    def pull(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
            if self.number == signal.SIGTERM:
                time.sleep(1.5)  # JAX's notifier looks once a second

    def later(self):
        """Pulls in a moment, while whatever was begun goes on."""
        threading.Timer(0.004, self.pull).start()


def wrapped(owner, name, *, before=None, after=None):
    whole = getattr(owner, name)

    @functools.wraps(whole)
    def wrapper(*arguments, **settings):
        if before is not None:
            before()
        found = whole(*arguments, **settings)
        if after is not None:
            after()
        return found

    setattr(owner, name, wrapper)


def updates(of, pull, *, after):
    """Calls `pull` before or after each update is dispatched, of GRPO (learner) or of SFT."""
    make = of.make_step

    def made(*arguments, **settings):
        box = {"step": make(*arguments, **settings)}
        holder = type("Holder", (), box)
        wrapped(holder, "step", **{"after" if after else "before": pull})
        return holder.step

    of.make_step = made


def torn(trigger):
    """Half of a row's text is in the file when the signal comes."""
    whole = metrics.Writer._append

    def append(self, name, rows):
        if trigger.left == 1:
            with open(self._workdir / name, "a", encoding="utf-8") as file:
                file.write('{"step": 1, "sta')
        trigger.pull()
        if trigger.left == 0 and trigger.number == signal.SIGTERM:  # it goes on: take the half row back
            path = self._workdir / name
            path.write_text(path.read_text().removesuffix('{"step": 1, "sta'))
        whole(self, name, rows)

    metrics.Writer._append = append


POINTS = {
    "before_save": lambda trigger: wrapped(checkpoint.Checkpoints, "save", before=trigger.pull),
    "in_arrays": lambda trigger: wrapped(checkpoint.ocp.Checkpointer, "save", before=trigger.later),
    "before_manifest": lambda trigger: wrapped(manifest, "write", before=trigger.pull),
    "before_rename": lambda trigger: wrapped(manifest, "write", after=trigger.pull),
    "after_save": lambda trigger: wrapped(checkpoint.Checkpoints, "_write", after=trigger.pull),
    "in_log": torn,
    "after_log": lambda trigger: wrapped(metrics.Writer, "scalars", after=trigger.pull),
    "mid_rollout": lambda trigger: wrapped(rollout.spread_lib.Spread, "gathered", after=trigger.pull),
    "mid_reward": lambda trigger: wrapped(grading.Grader, "_graded", before=trigger.pull),
    "mid_accumulation": lambda trigger: updates(learner, trigger.pull, after=True),
    "mid_accumulation_of_sft": lambda trigger: updates(sft, trigger.pull, after=True),
    "between_iterations": lambda trigger: updates(learner, trigger.pull, after=False),
    "mid_evaluation": lambda trigger: wrapped(evaluate, "mark", before=trigger.pull),
    "mid_merge": lambda trigger: wrapped(policy.lora, "merge", after=trigger.pull),
    "none": lambda trigger: None,
}


def main():
    point, nth, name, folder, *flags = sys.argv[1:]
    rollout.PAUSE_TURNS = 4  # the toy's completions are short
    rollout.Engine._shares = lambda *_, **__: {}  # what is left out here changes no number, and takes half of the time
    pipeline.report.write = lambda workdir: None
    recipes.RECIPES["toy"] = functools.partial(toy, pathlib.Path(folder))
    POINTS[point](Trigger(int(nth), getattr(signal, name)))
    sys.argv = ["train", "--recipe=toy", *flags]
    train.cli()


if __name__ == "__main__":
    main()
