"""The recipes of show_work: SFT on traces, then GRPO on their form and on being right.

    Evaluate -> Sft -> Evaluate -> Gate -> Merge -> Grpo -> Evaluate -> Gate -> Merge

A stage that its gate gives up leaves nothing behind, and the next begins where it began.
"""

import pathlib

from thinkfirst.rl import curriculum, objective, optimizer, stages
from thinkfirst.rl.data import source

DEMO_BASE = pathlib.Path(__file__).parent / "demo_base"
FORMAT_REQUEST = (
    "Solve the problem. Show your work inside <reasoning> and </reasoning> as numbered steps, each on its own line and "
    'starting with "Step 1:", "Step 2:" and so on. Then give only the final number inside <answer> and </answer>.'
)


def show_work_tiny() -> stages.RunConfig:
    """thinkfirst-train --recipe=show_work_tiny, or make pipelines: the whole pipeline on two CPU cores, in minutes.

    The tiny Gemma 3 of launch/demo_base and problems that are made here: it takes no data and no download.
    """
    grpo_steps = 40
    return _pipeline(
        "show_work_tiny",
        checkpoint=str(DEMO_BASE),
        data=source.DataConfig(kind="arithmetic", held_out=60, slip_share=0.5, long=0.25),
        evaluate=stages.Evaluate(label="", name="", max_new_tokens=60),
        sft=stages.Sft(
            optimizer=optimizer.OptimizerConfig(learning_rate=8e-3, decay="cosine"),
            steps=250,
            batch_size=16,
            num_tokens=112,
            save_every=50,
        ),
        grpo=stages.Grpo(
            optimizer=optimizer.OptimizerConfig(learning_rate=4e-3, decay="cosine"),
            steps=grpo_steps,
            prompts=16,
            group=8,
            micro_batches=8,
            max_new_tokens=60,
            phases=(
                curriculum.Phase("easy", until=6, difficulties=("easy", "easy", "easy", "medium")),
                curriculum.Phase("medium", until=20, difficulties=("medium", "medium", "easy", "hard")),
                curriculum.Phase("mixed", until=0, difficulties=("easy", "medium", "medium", "hard")),
            ),
            rewards=rewards(over=grpo_steps),
            loss=objective.LossConfig(beta=0.03),
        ),
        max_prompt_tokens=52,
        cpu_devices=2,
        notes=(
            "A share of {slip_share} of the traces that SFT imitates has a slip of its author; GRPO sees none of them.",
        ),
    )


def show_work_random() -> stages.RunConfig:
    """Real GSM8K, a real Gemma 2 tokenizer, and a random narrow Gemma: the path of a real run on a laptop.

    thinkfirst-train --recipe=show_work_random --set data.train=... --set data.eval=... --set tokenizer=...
    """
    return stages.RunConfig(
        recipe="show_work_random",
        architecture="narrow_gemma2",
        random_weights=True,
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
                rewards=rewards(over=4),
            ),
            stages.Evaluate(label="grpo", name="evaluate_grpo", samples=2, max_new_tokens=48),
        ),
        notes=("A random model learns nothing in a few steps: this recipe proves the path, not the method.",),
    )


def show_work_gemma3_1b() -> stages.RunConfig:
    """Gemma 3 1B shows its work on one TPU v5e-8, with the pipeline's published settings.

    thinkfirst-train --recipe=show_work_gemma3_1b --set checkpoint=gemma-3-1b-it \\
        --set data.train=gsm8k/train.jsonl --set data.eval=gsm8k/test.jsonl

    SFT takes two epochs of GSM8K's 7,473 solutions in batches of 32.  `thinkfirst-plan` with rank 64 says 0.17 hours at
    least: a roofline, to which evaluations, rewards and compilation come.
    """
    return _gemma3_1b("show_work_gemma3_1b", sft_rows=32, prompts=32)


def show_work_gemma3_1b_fast() -> stages.RunConfig:
    """The same with larger batches, and the steps and rates that go with them: what a v5e-8 has memory for.

    thinkfirst-train --recipe=show_work_gemma3_1b_fast --set checkpoint=gemma-3-1b-it \\
        --set data.train=gsm8k/train.jsonl --set data.eval=gsm8k/test.jsonl
    """
    return _gemma3_1b("show_work_gemma3_1b_fast", sft_rows=64, prompts=64)


def rewards(over: int) -> stages.RewardSchedule:
    """The weights of show_work, annealed over `over` steps."""
    return stages.RewardSchedule(
        trace=curriculum.Anneal(0.45, 0.25, over),
        correctness=curriculum.Anneal(0.40, 0.60, over),
        confidence=curriculum.Anneal(0.15, 0.15, over),
        verbosity=curriculum.Anneal(0.05, 0.05, over),
    )


def _gemma3_1b(recipe: str, *, sft_rows: int, prompts: int) -> stages.RunConfig:
    """Rows of SFT and prompts of GRPO in a step; twice as many take half the steps at sqrt(2) times the rate."""
    scale = prompts / 32
    return _pipeline(
        recipe,
        architecture="gemma3_1b",
        data=source.DataConfig(kind="gsm8k", held_out=200),
        instruction=FORMAT_REQUEST,
        evaluate=stages.Evaluate(label="", name="", max_new_tokens=768, suite=True),
        sft=stages.Sft(
            optimizer=optimizer.OptimizerConfig(learning_rate=1e-5 * (sft_rows / 32) ** 0.5),
            steps=round(2 * 7473 / sft_rows),
            batch_size=sft_rows,
            num_tokens=1024,
        ),
        grpo=stages.Grpo(
            optimizer=optimizer.OptimizerConfig(learning_rate=3e-6 * scale**0.5),
            steps=round(200 / scale),
            prompts=prompts,
            group=4,
            max_new_tokens=768,
            phases=(
                curriculum.Phase("easy", until=round(60 / scale), difficulties=("easy",)),
                curriculum.Phase("medium", until=round(140 / scale), difficulties=("medium",)),
                curriculum.Phase("hard", until=0, difficulties=("easy", "medium", "hard")),
            ),
            rewards=rewards(over=round(200 / scale)),
            loss=objective.LossConfig(beta=0.03),
        ),
        max_prompt_tokens=256,
        notes=(),
    )


def _pipeline(
    recipe: str,
    *,
    data: source.DataConfig,
    evaluate: stages.Evaluate,
    sft: stages.Sft,
    grpo: stages.Grpo,
    max_prompt_tokens: int,
    notes: tuple[str, ...],
    checkpoint: str = "",
    architecture: str = "",
    instruction: str = "",
    cpu_devices: int = 1,
) -> stages.RunConfig:
    """The pipeline's stages, at any size; `evaluate` is how each evaluation is made."""
    return stages.RunConfig(
        recipe=recipe,
        checkpoint=checkpoint,
        architecture=architecture,
        data=data,
        instruction=instruction,
        max_prompt_tokens=max_prompt_tokens,
        cpu_devices=cpu_devices,
        notes=notes,
        stages=(
            stages.labelled(evaluate, "base"),
            sft,
            stages.labelled(evaluate, "sft"),
            stages.Gate("gate_sft", metrics=("score",)),  # it teaches the form: leniently read, the base may be better
            stages.Merge("merge_sft"),
            grpo,
            stages.labelled(evaluate, "grpo"),
            stages.Gate("gate_grpo"),
            stages.Merge("merge_grpo"),
        ),
    )
