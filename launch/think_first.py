"""The recipes of think_first: GRPO over several domains first, then distillation, each kept only if it did not hurt.

    Evaluate -> Grpo -> Evaluate -> Gate -> Merge -> Reject -> Distill -> Evaluate -> Gate -> Merge

Reject samples the policy's own traces of the verifiable domains and keeps the best of the right ones; Distill learns
from traces of open domains, with those replayed among them.
"""

import pathlib

from thinkfirst.launch import show_work
from thinkfirst.rl import curriculum, objective, optimizer, stages
from thinkfirst.rl.data import mix, source

SECTIONS_BASE = pathlib.Path(__file__).parent / "sections_base"
FORMAT_REQUEST = """Think first, then answer. Write your reasoning inside <reasoning> and </reasoning>, in these four \
sections under these headings:
## Analysis & Strategy
## Step-by-Step Execution
## Verification & Self-Correction
## Final Synthesis
Then give only the final answer inside <answer> and </answer>: a number, the letter of an option, the words asked for, \
the program in one ```python block, or the text."""

# Of the published files in data.folder; docs/data.md says where each comes from.
VERIFIABLE = (
    mix.Part("gsm8k", "gsm8k", "gsm8k/train.jsonl", count=3000, eval="gsm8k/test.jsonl", held_out=60),
    mix.Part("svamp", "svamp", "svamp/SVAMP.json", count=500, held_out=20),
    mix.Part("mbpp", "mbpp", "mbpp/mbpp.jsonl#train", eval="mbpp/mbpp.jsonl#test", held_out=40),
    mix.Part("arc", "arc", "arc/train", count=1500, eval="arc/test", held_out=40),
    mix.Part("mmlu", "mmlu", "mmlu/dev", eval="mmlu/test", held_out=40),
    mix.Part("logiqa", "logiqa", "logiqa/Train.txt", count=1000, eval="logiqa/Test.txt", held_out=40),
    mix.Part("hotpotqa", "hotpotqa", "hotpotqa/hotpot_train_v1.1.json", count=1000, held_out=40),
    mix.Part("creative", "creative", eval="creative/prompts.txt", held_out=20),
)
# Traces of somebody's own: rows {question, domain, completion} with domain creative, summary or dialogue.
OPEN_TRACES = (mix.Part("traces", "jsonl", "traces/open.jsonl"),)


def think_first_tiny() -> stages.RunConfig:
    """thinkfirst-train --recipe=think_first_tiny, or make pipelines: the whole pipeline on two CPU cores, in minutes.

    Problems of six domains are made here (rl/data/small_world.py), programs run in the sandbox.  It starts from
    launch/sections_base, which knows the sections from an author who slips, as a tuned Gemma knows its instructions.
    """
    grpo_steps = 60
    return _pipeline(
        "think_first_tiny",
        checkpoint=str(SECTIONS_BASE),
        data=source.DataConfig(kind="small_world", held_out=96),
        evaluate=stages.Evaluate(label="", name="", samples=2, max_new_tokens=176, form="sections"),
        grpo=stages.Grpo(
            optimizer=optimizer.OptimizerConfig(learning_rate=2e-3, decay="cosine"),
            lora=stages.LoraConfig(rank=16, alpha=32.0),
            steps=grpo_steps,
            prompts=8,
            group=8,
            micro_batches=4,
            max_new_tokens=176,
            phases=(curriculum.Phase("mixed", until=0, difficulties=("easy", "medium", "hard")),),
            rewards=stages.ThinkFirstRewards(style=curriculum.Anneal(1.0, 0.5, grpo_steps)),
            loss=objective.LossConfig(beta=0.03),
        ),
        reject=stages.Reject(
            rewards=stages.ThinkFirstRewards(),
            problems=64,
            difficulties=("easy", "medium", "hard"),
            prompts=32,
            samples=2,
            max_new_tokens=176,
        ),
        distill=stages.Distill(
            optimizer=optimizer.OptimizerConfig(learning_rate=2e-3, decay="cosine"),
            lora=stages.LoraConfig(rank=16, alpha=32.0),
            steps=100,
            batch_size=16,
            num_tokens=216,
            data=source.DataConfig(kind="small_world_open"),
            replay="reject",
            replay_share=0.5,
        ),
        max_prompt_tokens=64,
        cpu_devices=2,
        notes=("The base learned the form from traces with slips; the traces of distillation have none.",),
    )


def sections_base() -> stages.RunConfig:
    """make sections-base.  The base of think_first_tiny: that of the demo, shown traces of which two in five slip.

    It stands for an instruction-tuned Gemma, which has been told of headings and makes mistakes.
    """
    return stages.RunConfig(
        recipe="sections_base",
        checkpoint=str(show_work.DEMO_BASE),
        data=source.DataConfig(kind="small_world", held_out=96, slip_share=0.4),
        max_prompt_tokens=64,
        cpu_devices=2,
        stages=(
            stages.Pretrain(
                optimizer=optimizer.OptimizerConfig(learning_rate=4e-3, warmup=0.05, decay="cosine"),
                data="small_world",
                name="instruct",
                steps=900,
                batch_size=16,
                num_tokens=216,
            ),
            stages.Evaluate(label="base", name="evaluate_base", samples=2, max_new_tokens=176, form="sections"),
            stages.Export(folder=str(SECTIONS_BASE)),
        ),
    )


def think_first_gemma2_2b() -> stages.RunConfig:
    """Gemma 2 2B-it thinks first, on one TPU v5e-8 in a session of nine hours, with the published settings.

    thinkfirst-train --recipe=think_first_gemma2_2b --set checkpoint=gemma-2-2b-it --set data.folder=DATA \\
        --max_seconds=31000

    DATA holds the files of VERIFIABLE and OPEN_TRACES above; `--set data.use=gsm8k,mbpp` takes some of them.  The
    published batch of one problem is here one on each of the eight chips.  `thinkfirst-plan`, rank 64 and prompts
    of 256 says 0.65 hours at least: a roofline.
    """
    return _gemma2_2b("think_first_gemma2_2b", prompts=8, distill_rows=8)


def think_first_gemma2_2b_fast() -> stages.RunConfig:
    """The same with larger batches, and the steps and rates that go with them: what a v5e-8 has memory for.

    thinkfirst-train --recipe=think_first_gemma2_2b_fast --set checkpoint=gemma-2-2b-it --set data.folder=DATA
    """
    return _gemma2_2b("think_first_gemma2_2b_fast", prompts=32, distill_rows=32)


def _gemma2_2b(recipe: str, *, prompts: int, distill_rows: int) -> stages.RunConfig:
    """Prompts of GRPO and rows of distillation in a step; four times as many take a quarter of the steps."""
    scale = prompts / 8
    steps = round(400 / scale)
    lora = stages.LoraConfig(rank=32, alpha=64.0)
    return _pipeline(
        recipe,
        architecture="gemma2_2b",
        data=source.DataConfig(kind="mix", parts=VERIFIABLE),
        instruction=FORMAT_REQUEST,
        evaluate=stages.Evaluate(label="", name="", samples=2, max_new_tokens=768, form="sections", suite=True),
        grpo=stages.Grpo(
            optimizer=optimizer.OptimizerConfig(learning_rate=3e-6 * scale**0.5),
            lora=lora,
            steps=steps,
            prompts=prompts,
            group=3,
            max_new_tokens=768,
            phases=(curriculum.Phase("mixed", until=0, difficulties=(mix.ANY,)),),
            rewards=stages.ThinkFirstRewards(style=curriculum.Anneal(1.0, 0.5, steps)),
            loss=objective.LossConfig(beta=0.03),
        ),
        reject=stages.Reject(
            rewards=stages.ThinkFirstRewards(), problems=1024, difficulties=(mix.ANY,), max_new_tokens=768
        ),
        distill=stages.Distill(
            optimizer=optimizer.OptimizerConfig(learning_rate=5e-6 * (distill_rows / 8) ** 0.5),
            lora=lora,
            steps=round(400 * 8 / distill_rows),
            batch_size=distill_rows,
            num_tokens=1536,
            data=source.DataConfig(kind="mix", parts=OPEN_TRACES),
            replay="reject",
            replay_share=0.5,
        ),
        max_prompt_tokens=640,
        notes=(),
    )


def _pipeline(
    recipe: str,
    *,
    data: source.DataConfig,
    evaluate: stages.Evaluate,
    grpo: stages.Grpo,
    reject: stages.Reject,
    distill: stages.Distill,
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
            grpo,
            stages.labelled(evaluate, "grpo"),
            stages.Gate("gate_grpo"),
            stages.Merge("merge_grpo"),
            reject,
            distill,
            stages.labelled(evaluate, "distill"),
            stages.Gate("gate_distill"),
            stages.Merge("merge_distill"),
        ),
    )
