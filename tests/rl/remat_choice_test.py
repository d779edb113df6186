import dataclasses

import pytest

import slices
from thinkfirst.launch import show_work
from thinkfirst.models import config, remat
from thinkfirst.rl import device_memory, plan_programs, remat_choice

KEPT = {"none": 900, "products": 700, "gate": 500, "narrow": 300, "attention": 200, "context": 100, "full": 50}


def test_the_policy_chosen_is_the_first_that_fits():
    tried = []

    def fits(name):
        tried.append(name)
        return name in ("narrow", "attention", "context", "full")

    # 50 beside what is kept: of 700 there is room for 636, and "gate" needs more than was foretold
    assert remat_choice.chosen(fits, KEPT.__getitem__, 50.0, 700) == "narrow"
    assert tried == ["gate", "narrow"]
    assert remat_choice.chosen(fits, KEPT.__getitem__, 2000.0, 700) == "full"


def grpo(**settings):
    """The GRPO stage of the tiny recipe, for eight shards."""
    (stage,) = [stage for stage in show_work.show_work_tiny().stages if stage.name == "grpo"]
    return dataclasses.replace(stage, prompts=8, micro_batches=1, **settings)


@pytest.mark.parametrize(("setting", "taken"), [("auto", "none"), ("attention", "attention")])
def test_a_cpu_computes_nothing_again_unless_it_is_asked_to(setting, taken):
    stage = grpo(remat=setting)
    subject = plan_programs.trained(config.demo_gemma3(), slices.cpu(), stage)
    assert remat_choice.settled(stage, subject) == taken


@pytest.mark.long
@pytest.mark.timeout(900)  # the TPU compiler takes its time
def test_auto_gives_up_just_what_the_chip_has_no_room_for(monkeypatch, capsys):
    """With as much memory as a policy needs, that one is taken or one that computes less again."""
    pytest.importorskip("libtpu", reason="left out: compiling for TPUs; pip install libtpu")
    stage = grpo(remat="auto")
    shape = dataclasses.replace(config.demo_gemma3(), num_layers=2)
    subject = plan_programs.trained(shape, slices.layout("v5e:2x4"), stage)
    needs = {}
    for name in ("none", "attention"):
        traced = plan_programs.step(stage, subject, prompt=256, remat=name)
        needs[name] = device_memory.compiled(traced.lower())[1]
    assert needs["attention"] < needs["none"]
    monkeypatch.setattr(remat_choice, "SPARE", 2.0)  # nothing is foretold: each is tried
    for room, allowed in (("none", ("none",)), ("attention", remat.NAMES[1 : remat.NAMES.index("attention") + 1])):
        monkeypatch.setattr(device_memory, "limit", lambda device, room=room: needs[room])
        found = remat_choice.settled(stage, subject, prompt=256)
        assert found in allowed
        assert f"remat=auto is {found}" in capsys.readouterr().out
