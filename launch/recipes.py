"""Recipes: one function per run, named for what it is; the two pipelines have theirs in show_work.py, think_first.py.

The base checkpoints of the tiny runs are made by `demo_base` and `sections_base` and kept in folders of those names;
every number of these recipes can be changed on the command line with --set.
"""

from collections.abc import Callable

from thinkfirst.launch import show_work, think_first
from thinkfirst.rl import curriculum, objective, optimizer, stages
from thinkfirst.rl.data import source

DEMO_BASE = show_work.DEMO_BASE


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
                rewards=show_work.rewards(over=grpo_steps),
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


RECIPES: dict[str, Callable[[], stages.RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        demo_base,
        demo,
        demo_small,
        show_work.show_work_tiny,
        show_work.show_work_random,
        show_work.show_work_gemma3_1b,
        show_work.show_work_gemma3_1b_fast,
        think_first.sections_base,
        think_first.think_first_tiny,
        think_first.think_first_gemma2_2b,
        think_first.think_first_gemma2_2b_fast,
    )
}


def named(name: str) -> stages.RunConfig:
    """The recipe of that name."""
    if name not in RECIPES:
        raise ValueError(f"--recipe={name}: there is {', '.join(RECIPES)}")
    return RECIPES[name]()
