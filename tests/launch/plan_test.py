"""The plan of a tiny recipe, compiled for a slice that is not there."""

import dataclasses
import json

import pytest

from thinkfirst.launch import plan, recipes
from thinkfirst.models import config

KEYS = {"programs", "fits", "largest_micro_batch_rows_per_device", "step_seconds_estimate", "hours_estimate"}


@pytest.mark.long
@pytest.mark.timeout(900)  # the TPU compiler takes its time
def test_a_tiny_recipe_is_planned(tmp_path, capsys):
    out = tmp_path / "plan.json"
    line = ["plan", "--recipe=show_work_random", "--topology=v5e:2x4", f"--out={out}", "--set=stages.grpo.prompts=8"]
    line += ["--set=stages.sft.batch_size=8"]
    assert plan.main(line) == 0
    found = json.loads(out.read_text())
    assert found.keys() >= KEYS
    assert found["fits"]
    assert set(found["programs"]) == {"sft/update", "grpo/rollout", "grpo/scoring", "grpo/update"}
    assert all(program["peak_bytes"] > 0 and program["seconds"] > 0 for program in found["programs"].values())
    stage = found["stages"]["grpo"]
    assert stage["remat"] == "full"  # as the recipe says; SFT leaves it to the plan, and everything fits
    assert found["stages"]["sft"]["remat"] == "none"
    assert stage["flops_by_those_without_remat"] > 1
    assert found["largest_micro_batch_rows_per_device"] > found["stages"]["grpo"]["rows_per_device"]
    assert "hours in all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--topology=v3:2x2"], "topology 'v3:2x2': there is v4, v5e"),
        (["--topology=v5e:3x3"], "no TPU slice 'v5e:3x3'"),
        (["--set=architecture=gemma9"], "architecture='gemma9': there is gemma2_2b"),
        (["--set=stages.sft.batch_size=3"], "sft: 3 rows cannot be cut into 8 equal parts"),
    ],
)
def test_what_a_user_gets_wrong_is_said_in_a_line(flags, says, capsys):
    assert plan.main(["plan", "--recipe=show_work_random", *flags]) == 2
    assert says in capsys.readouterr().err


def test_a_checkpoint_brings_its_shape(tmp_path):
    recipe = dataclasses.replace(recipes.named("show_work_random"), checkpoint=str(recipes.DEMO_BASE))
    assert plan.architecture(recipe) == config.demo_gemma3()


def test_the_text_says_by_how_much_a_program_does_not_fit():
    program = dict.fromkeys(("argument_bytes", "temporary_bytes", "resident_bytes", "flops", "bytes_accessed"), 0)
    program |= {"peak_bytes": 20e9, "over_bytes": 3.2e9, "fits": False, "seconds": 1.0}
    found = {
        "recipe": "x",
        "topology": "v5e:2x4",
        "roof": {"hbm_bytes": 16 * 2**30},
        "programs": {"grpo/update": program},
        "stages": {},
        "assumptions": [],
        "hours_estimate": 1.0,
    }
    assert any(line.endswith("no, by 3.20 GB") for line in plan.lines(found))
