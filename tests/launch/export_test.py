"""A run goes out whole, or as one adapter of its checkpoint, and is the same model wherever it comes in."""

import json

import pytest

from thinkfirst.core import runtime
from thinkfirst.launch import export, generate, recipes, show_work
from thinkfirst.rl import curriculum, loop, optimizer, pipeline, stages
from thinkfirst.rl.data import source

pytestmark = pytest.mark.slow
ROW = json.dumps({"prompt": "Ann has 12 apples and buys 3. How many apples does Ann have?"}) + "\n"


def tiny():
    """The demo's stages, each a step or two long."""
    rate = optimizer.OptimizerConfig(learning_rate=1e-2)
    lora = stages.LoraConfig(rank=4, alpha=8.0)
    return stages.RunConfig(
        recipe="tiny",
        checkpoint=str(recipes.DEMO_BASE),
        data=source.DataConfig(held_out=3),
        max_prompt_tokens=64,
        stages=(
            stages.Sft(optimizer=rate, lora=lora, steps=2, batch_size=8, num_tokens=128),
            stages.Merge(),
            stages.Grpo(
                optimizer=rate,
                lora=lora,
                steps=2,
                prompts=4,
                group=2,
                max_new_tokens=8,
                save_every=1,
                phases=(curriculum.Phase("easy", until=0, difficulties=("easy",)),),
                rewards=show_work.rewards(over=2),
            ),
        ),
    )


@pytest.fixture
def workdir(tmp_path_factory):
    """A run that was cut short after the first step of its second training stage."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.raises(loop.OutOfBudget):
        pipeline.run(tiny(), folder, runtime.Budget(max_steps=3))
    return folder


@pytest.fixture
def completion(tmp_path, monkeypatch, workdir):
    """What a model on disk answers."""
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny)
    (tmp_path / "rows.jsonl").write_text(ROW)

    def run(*arguments):
        out = tmp_path / "completions.jsonl"
        files = [f"--input={tmp_path / 'rows.jsonl'}", f"--out={out}", "--chat", "--max_new_tokens=24"]
        assert generate.main(["generate", *files, *arguments]) == 0
        return out.read_text()

    return run


@pytest.mark.long
def test_a_run_is_the_same_model_in_every_form(workdir, completion, tmp_path):
    expected = completion(f"--workdir={workdir}")
    assert expected != completion(f"--checkpoint={recipes.DEMO_BASE}"), "the run changed nothing: this shows nothing"
    for form in ("hf", "orbax", "peft"):
        out = tmp_path / form
        assert export.main(["export", f"--workdir={workdir}", f"--format={form}", f"--out={out}"]) == 0
        model = f"--checkpoint={out}" if form != "peft" else f"--checkpoint={recipes.DEMO_BASE}"
        found = completion(model, *([f"--adapter={out}"] if form == "peft" else []))
        rows = [json.loads(line) for line in (expected, found)]
        assert rows[0]["tokens"] == rows[1]["tokens"]
        assert rows[0]["logprobs"] == pytest.approx(rows[1]["logprobs"], abs=2e-5)
    told = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert told["r"] == 8, "two stages of rank 4, side by side"
    assert told["base_model_name_or_path"] == str(recipes.DEMO_BASE)
    assert export.main(["export", f"--checkpoint={tmp_path / 'hf'}", f"--out={tmp_path / 'again'}"]) == 0
    for file in (tmp_path / "hf").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    assert not export.main(["export", f"--checkpoint={tmp_path / 'orbax'}", f"--out={tmp_path / 'third'}"])
    assert (tmp_path / "third" / "model.safetensors").read_bytes() == (tmp_path / "hf/model.safetensors").read_bytes()


def test_a_base_has_no_adapter_to_export(tmp_path, capsys):
    arguments = [f"--checkpoint={recipes.DEMO_BASE}", "--format=peft", f"--out={tmp_path / 'peft'}"]
    assert export.main(["export", *arguments]) == 2
    assert "there is no adapter to export" in capsys.readouterr().err
    assert not (tmp_path / "peft").exists()
