import dataclasses

import pytest

from thinkfirst.launch import recipes, show_work
from thinkfirst.rl import optimizer, stages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": 1}, "group=1 must be at least 2"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"micro_batches": 5}, "cannot be cut into 5"),
        ({"row_tokens": -1}, "row_tokens=-1 must be at least 0"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    grpo = next(stage for stage in recipes.demo().stages if isinstance(stage, stages.Grpo))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(grpo, **change)


def test_an_advantage_without_a_name_is_refused():
    """In tests the annotation would refuse it first: the field is set behind its back."""
    grpo = next(stage for stage in recipes.demo().stages if isinstance(stage, stages.Grpo))
    unchecked = object.__new__(stages.Grpo)
    vars(unchecked).update({**vars(grpo), "advantage": "gae"})
    with pytest.raises(ValueError, match="advantage='gae' is none of grpo, grpo_ddof0, dr_grpo, rloo, batch_std"):
        unchecked.__post_init__()


def test_stages_need_names_of_their_own():
    config = recipes.demo()
    with pytest.raises(ValueError, match="names of their own"):
        dataclasses.replace(config, stages=config.stages[:1] * 2)


GATED = [stage.name for stage in show_work.show_work_tiny().stages[:5]]


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ((0, 1, 3), "gate_sft needs, in this order"),  # nothing says what came of the stage
        ((1, 2, 3), "gate_sft needs"),  # nor what there was before
        ((0, 2, 3), "gate_sft needs"),  # there is no stage to give up
        ((0, 1, 4, 2, 3), "gate_sft needs"),  # it has been merged
    ],
)
def test_a_gate_needs_something_to_compare(left, message):
    config = show_work.show_work_tiny()
    assert GATED == ["evaluate_base", "sft", "evaluate_sft", "gate_sft", "merge_sft"]
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, stages=tuple(config.stages[place] for place in left))


def test_labels_are_those_of_one_evaluation():
    config = show_work.show_work_tiny()
    twice = (config.stages[0], dataclasses.replace(config.stages[0], name="again"))
    with pytest.raises(ValueError, match="labels of their own"):
        dataclasses.replace(config, stages=twice)


def test_replaying_nothing_is_refused():
    with pytest.raises(ValueError, match="contradict each other"):
        stages.Distill(optimizer.OptimizerConfig(1e-3), replay_share=0.5)
