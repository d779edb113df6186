import json

import pytest

from thinkfirst.launch import ablate

TINY = ("stages.sft.steps=2", "stages.sft.batch_size=8", "stages.grpo.steps=2", "stages.grpo.prompts=4")
TINY += ("data.held_out=6",)
TINY += ("stages.grpo.group=2", "stages.grpo.micro_batches=1", "stages.grpo.max_new_tokens=16")
TINY += ("stages.evaluate_grpo.samples=1", "stages.evaluate_grpo.max_new_tokens=8")


def test_the_table_is_printed_at_once(capsys):
    assert ablate.main(["ablate"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 7 and shown[2].startswith("| correctness only")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "--seeds=a"], "--seeds=a: different whole numbers"),
        (["--train", "--seeds=1,1"], "--seeds=1,1: different whole numbers"),
        (["--train", "--set", "stages.nope.steps=1"], "nope"),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert ablate.main(["ablate", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.timeout(900)
def test_training_runs_are_made_once_and_compared(tmp_path, capsys):
    line = ["ablate", "--train", "--seeds=3", f"--workdir={tmp_path}", *(f"--set={pair}" for pair in TINY)]
    assert ablate.main(line) == 0
    table = (tmp_path / "ablation.md").read_text()
    assert [row.split("|")[1].strip() for row in table.splitlines()[2:]] == [
        "correctness only", "+ trace", "+ confidence", "annealed",
    ]  # fmt: skip
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "ablation.json").read_text())
    assert all(len(runs) == 1 and runs[0]["problems"] == 6 for runs in found.values())
    capsys.readouterr()
    assert ablate.main(line) == 0  # nothing is trained again: the same table
    assert (tmp_path / "ablation.md").read_text() == table
