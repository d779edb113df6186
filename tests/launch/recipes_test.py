import pytest

from thinkfirst.core import config
from thinkfirst.launch import recipes
from thinkfirst.rl import curriculum, stages


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_can_be_built_dumped_and_overridden(name):
    recipe = recipes.named(name)
    assert recipe.recipe == name
    assert config.override(recipe, ["seed=3"]).seed == 3
    assert config.digest(recipe) != config.digest(config.override(recipe, ["seed=3"]))


def test_an_unknown_recipe_lists_the_known():
    with pytest.raises(ValueError, match="demo_base, demo, demo_small, show_work_tiny, show_work_random"):
        recipes.named("nothing")


def test_the_demo_is_sft_then_grpo_with_a_curriculum_and_annealing():
    demo = recipes.demo()
    kinds = [type(stage) for stage in demo.stages]
    assert kinds.index(stages.Sft) < kinds.index(stages.Merge) < kinds.index(stages.Grpo)
    grpo = demo.stages[kinds.index(stages.Grpo)]
    assert [phase.name for phase in grpo.phases] == ["easy", "medium", "mixed"]
    assert curriculum.value_at(grpo.rewards.trace, 1) == 0.45
    assert curriculum.value_at(grpo.rewards.trace, grpo.steps) == 0.25
    assert curriculum.value_at(grpo.rewards.correctness, grpo.steps) == 0.60
