"""What is planned is what the recipe asks for."""

import jax

from thinkfirst.core import mesh
from thinkfirst.launch import recipes
from thinkfirst.models import config
from thinkfirst.rl import plan_programs, scheduler, stages


def test_the_caches_of_the_rollout_are_of_the_integers_that_a_recipe_asks_for():
    """A quarter of float32, and scales of four bytes for each head of 32: 9/32."""
    stage = next(stage for stage in recipes.named("demo").stages if isinstance(stage, stages.Grpo))
    subject = plan_programs.trained(config.demo_gemma3(), mesh.make(mesh.MeshConfig(), jax.devices()[:1]), stage)

    def num_bytes(*, int8):
        shape = plan_programs.engine_shape(stage, subject, prompt=52, lanes=64, int8=int8)
        caches = jax.eval_shape(lambda: scheduler.empty(subject.model, shape))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((caches.own, caches.resident)))

    assert num_bytes(int8=True) / num_bytes(int8=False) == 9 / 32
