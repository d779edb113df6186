"""Recipes: one function per run, named for what it is.

The demo's base checkpoint is made by `demo_base` and kept in launch/demo_base; every number of these recipes can be
changed on the command line with --set.
"""

import pathlib
from collections.abc import Callable

from thinkfirst.rl import curriculum, objective, optimizer, stages
from thinkfirst.rl.data import source

DEMO_BASE = pathlib.Path(__file__).parent / "demo_base"
FORMAT_REQUEST = (
    "Solve the problem. Show your work inside <reasoning> and </reasoning> as numbered steps, each on its own line and "
    'starting with "Step 1:", "Step 2:" and so on. Then give only the final number inside <answer> and </answer>.'
)


def demo_base() -> stages.RunConfig:
    """make demo-base.  Trains the demo's base model from nothing: plain questions, correct answers, no tags."""
    return stages.RunConfig(
        recipe="demo_base",
        architecture="demo_gemma3",
        data=source.DataConfig(kind="arithmetic", long=0.25),
        max_prompt_tokens=64,
        cpu_devices=2,
        stages=(
            stages.Pretrain(
                optimizer=optimizer.OptimizerConfig(learning_rate=6e-3, warmup=0.05, decay="cosine"),
                data="arithmetic_drill",
                name="reckoning",
                steps=800,
                batch_size=32,
                num_tokens=80,
            ),
            stages.Pretrain(
                optimizer=optimizer.OptimizerConfig(learning_rate=4e-3, warmup=0.05, decay="cosine"),
                data="arithmetic_plain",
                name="writing",
                steps=900,
                batch_size=48,
                num_tokens=104,
            ),
            stages.Evaluate(label="base", name="evaluate_base", max_new_tokens=64),
            stages.Export(folder=str(DEMO_BASE)),
        ),
    )


def demo() -> stages.RunConfig:
    """make demo.  SFT on traces with human slips, then GRPO that unlearns them: minutes on two CPU cores.

    No phase is of one difficulty alone: ten steps of easy problems alone made it forget to go on after step 1.
    """
    return _demo("demo", sft_steps=500, grpo_steps=140, held_out=120)


def demo_small() -> stages.RunConfig:
    """make demo-small.  The same stages, cut short: what continuous integration runs."""
    return _demo("demo_small", sft_steps=120, grpo_steps=6, held_out=30)


def _demo(recipe: str, *, sft_steps: int, grpo_steps: int, held_out: int) -> stages.RunConfig:
    lora = stages.LoraConfig(rank=16, alpha=16.0)
    evaluate = lambda label: stages.Evaluate(label=label, name=f"evaluate_{label}", max_new_tokens=60)  # noqa: E731
    return stages.RunConfig(
        recipe=recipe,
        checkpoint=str(DEMO_BASE),
        data=source.DataConfig(kind="arithmetic", held_out=held_out, slip_share=0.5, long=0.25),
        max_prompt_tokens=52,
        cpu_devices=2,
        stages=(
            evaluate("base"),
            stages.Sft(
                optimizer=optimizer.OptimizerConfig(learning_rate=8e-3, decay="cosine"),
                lora=lora,
                steps=sft_steps,
                batch_size=16,
                num_tokens=112,
                save_every=50,
            ),
            evaluate("sft"),
            stages.Merge(),
            stages.Grpo(
                optimizer=optimizer.OptimizerConfig(learning_rate=4e-3, decay="cosine"),
                lora=lora,
                steps=grpo_steps,
                prompts=16,
                group=8,
                row_tokens=128,
                micro_batches=8,
                max_new_tokens=60,
                phases=(
                    curriculum.Phase("easy", until=grpo_steps // 8, difficulties=("easy", "easy", "easy", "medium")),
                    curriculum.Phase(
                        "medium", until=grpo_steps // 2, difficulties=("medium", "medium", "easy", "hard")
                    ),
                    curriculum.Phase("mixed", until=0, difficulties=("easy", "medium", "medium", "hard")),
                ),
                rewards=show_work_rewards(over=grpo_steps),
                loss=objective.LossConfig(beta=0.03),
            ),
            evaluate("grpo"),
        ),
        notes=(
            "The traces SFT imitates were written by an imaginary author who slips in a share of {slip_share} of them "
            "(a forgotten carry, a misread number, steps in the wrong order): --set data.slip_share=...",
            "GRPO never sees a trace or an SFT target: only fresh problems, their answers and the rewards.",
        ),
    )


def show_work_tiny() -> stages.RunConfig:
    """Real GSM8K, a real Gemma 2 tokenizer, and a random narrow Gemma: every part of show_work on a laptop.

    thinkfirst-train --recipe=show_work_tiny --set data.train=... --set data.eval=... --set tokenizer=...
    """
    return stages.RunConfig(
        recipe="show_work_tiny",
        architecture="narrow_gemma2",
        data=source.DataConfig(kind="gsm8k", held_out=4),
        instruction=FORMAT_REQUEST,
        max_prompt_tokens=448,
        stages=(
            stages.Sft(
                optimizer=optimizer.OptimizerConfig(learning_rate=1e-3),
                steps=2,
                batch_size=4,
                num_tokens=640,
                save_every=1,
            ),
            stages.Merge(),
            stages.Grpo(
                optimizer=optimizer.OptimizerConfig(learning_rate=1e-3),
                steps=4,
                prompts=2,
                group=4,
                micro_batches=2,
                remat="full",
                max_new_tokens=48,
                save_every=1,
                phases=(
                    curriculum.Phase("easy", until=1, difficulties=("easy",)),
                    curriculum.Phase("mixed", until=0, difficulties=("easy", "medium", "hard")),
                ),
                rewards=show_work_rewards(over=4),
            ),
            stages.Evaluate(label="grpo", name="evaluate_grpo", samples=2, max_new_tokens=48),
        ),
        notes=("A random model learns nothing in a few steps: this recipe proves the path, not the method.",),
    )


def show_work_gemma3_1b() -> stages.RunConfig:
    """Gemma 3 1B shows its work: SFT on traces, then GRPO, on one TPU v5e-8.

    thinkfirst-train --recipe=show_work_gemma3_1b --set checkpoint=... --set data.train=... --set data.eval=...
    """
    return stages.RunConfig(
        recipe="show_work_gemma3_1b",
        architecture="gemma3_1b",
        data=source.DataConfig(kind="gsm8k", held_out=100),
        instruction=FORMAT_REQUEST,
        max_prompt_tokens=256,
        stages=(
            stages.Sft(
                optimizer=optimizer.OptimizerConfig(learning_rate=1e-5), steps=400, batch_size=32, num_tokens=1024
            ),
            stages.Merge(),
            stages.Grpo(
                optimizer=optimizer.OptimizerConfig(learning_rate=3e-6),
                steps=200,
                prompts=32,
                group=4,
                remat="gate",
                max_new_tokens=768,
                phases=(
                    curriculum.Phase("easy", until=60, difficulties=("easy",)),
                    curriculum.Phase("medium", until=140, difficulties=("medium",)),
                    curriculum.Phase("hard", until=0, difficulties=("easy", "medium", "hard")),
                ),
                rewards=show_work_rewards(over=200),
                loss=objective.LossConfig(beta=0.03),
            ),
            stages.Evaluate(label="grpo", name="evaluate_grpo", max_new_tokens=768),
        ),
    )


def think_first_gemma2_2b() -> stages.RunConfig:
    """The sizes of Gemma 2 2B's GRPO in the second pipeline, for `plan`; its format and rewards are still show_work's.

    thinkfirst-train --recipe=think_first_gemma2_2b --set checkpoint=... --set data.train=... --set data.eval=...
    """
    return stages.RunConfig(
        recipe="think_first_gemma2_2b",
        architecture="gemma2_2b",
        data=source.DataConfig(kind="gsm8k", held_out=100),
        instruction=FORMAT_REQUEST,
        max_prompt_tokens=256,
        stages=(
            stages.Grpo(
                optimizer=optimizer.OptimizerConfig(learning_rate=3e-6),
                lora=stages.LoraConfig(rank=32, alpha=64.0),
                steps=200,
                prompts=8,
                group=3,
                remat="full",
                max_new_tokens=768,
                phases=(curriculum.Phase("mixed", until=0, difficulties=("easy", "medium", "hard")),),
                rewards=show_work_rewards(over=200),
                loss=objective.LossConfig(beta=0.03),
            ),
            stages.Merge(),
            stages.Evaluate(label="grpo", name="evaluate_grpo", max_new_tokens=768),
        ),
    )


def show_work_rewards(over: int) -> stages.RewardSchedule:
    """The weights of show_work, annealed over `over` steps."""
    return stages.RewardSchedule(
        trace=curriculum.Anneal(0.45, 0.25, over),
        correctness=curriculum.Anneal(0.40, 0.60, over),
        confidence=curriculum.Anneal(0.15, 0.15, over),
        verbosity=curriculum.Anneal(0.05, 0.05, over),
    )


RECIPES: dict[str, Callable[[], stages.RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (demo_base, demo, demo_small, show_work_tiny, show_work_gemma3_1b, think_first_gemma2_2b)
}


def named(name: str) -> stages.RunConfig:
    """The recipe of that name."""
    if name not in RECIPES:
        raise ValueError(f"--recipe={name}: there is {', '.join(RECIPES)}")
    return RECIPES[name]()
