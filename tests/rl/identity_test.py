"""What a run may be gone on with, and what is another run."""

import dataclasses
import json

import pytest

from thinkfirst.core import config as config_lib
from thinkfirst.core import mesh
from thinkfirst.launch import recipes
from thinkfirst.models import config, gemma, tokenizer
from thinkfirst.rl import identity, pipeline, policy, stages
from thinkfirst.rl.data import mix, source

ROWS = [{"id": str(n), "question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(9)]


def data(folder, rows=ROWS):
    for name, part in (("train", rows[:6]), ("eval", rows[6:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = source.DataConfig(kind="jsonl", train=f"{folder}/train.jsonl", eval=f"{folder}/eval.jsonl")
    part = mix.Part("x", "jsonl", train=files.train, eval=files.eval, held_out=2)
    return source.make(files, 0).fingerprint(), mix.Mix([part], 0).fingerprint()


def test_another_row_order_or_answer_is_other_data(tmp_path):
    same = data(tmp_path)
    assert data(tmp_path) == same
    for rows in (ROWS[1::-1] + ROWS[2:], [*ROWS[:5], {**ROWS[5], "answer": "0"}, *ROWS[6:]], ROWS[1:]):
        for mine, theirs in zip(data(tmp_path, rows), same, strict=True):
            assert mine != theirs


def test_generated_data_are_told_apart_by_what_makes_them():
    prints = [
        source.make(source.DataConfig(**settings), seed).fingerprint()
        for seed, settings in [(0, {}), (1, {}), (0, {"slip_share": 0.2}), (0, {"held_out": 30}), (0, {"long": 0.5})]
    ]
    assert len(set(prints)) == len(prints)


def subject(seed=0, instruction=""):
    devices = mesh.make(mesh.MeshConfig())
    model = gemma.Model(config.demo_gemma3(), devices)
    words = tokenizer.Tokenizer(recipes.DEMO_BASE)
    return policy.Policy(model, words, devices, model.init(seed), words.stop_ids, instruction=instruction)


def test_base_tokenizer_and_template_count():
    found = identity.of(subject())
    assert identity.of(subject(seed=1))["base"] != found["base"]
    assert identity.of(subject(instruction="Be brief."))["tokenizer"] != found["tokenizer"]
    assert found.keys() == {"base", "tokenizer"}
    with pytest.raises(ValueError, match="sft, step 3: made with another base 0 -> 1; data None -> 2; put the old one"):
        identity.check({"base": "0", "tokenizer": "t"}, {"base": "1", "tokenizer": "t", "data": "2"}, "sft, step 3")


def changed(tmp_path, **settings):
    """What `claim` says of a run of the demo that is gone on with after a change."""
    before = recipes.demo()
    pipeline.claim(before, tmp_path)
    pipeline.claim(dataclasses.replace(before, **settings), tmp_path)
    return json.loads((tmp_path / "config.json").read_text())


def test_where_and_how_often_may_change(tmp_path, capsys):
    sft = dataclasses.replace(recipes.demo().stages[1], save_every=7)
    others = recipes.demo().stages
    written = changed(
        tmp_path, mesh=mesh.MeshConfig(tensor=2), cpu_devices=4, stages=(others[0], sft, *others[2:]), notes=("x",)
    )
    assert written["mesh"]["tensor"] == 2 and written["stages"][1]["save_every"] == 7
    assert "goes on with another mesh.tensor: 1 -> 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 1},
        {"max_prompt_tokens": 60},
        {"data": source.DataConfig(slip_share=0.1)},
        {"stages": (stages.Merge("first"), *recipes.demo().stages[1:])},
        {"stages": recipes.demo().stages[:3]},
    ],
)
def test_what_is_drawn_and_learnt_may_not(tmp_path, settings):
    with pytest.raises(ValueError, match=f"holds a run with other settings .*{next(iter(settings))}"):
        changed(tmp_path, **settings)
    assert json.loads((tmp_path / "config.json").read_text()) == config_lib.dump(recipes.demo())
