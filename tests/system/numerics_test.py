"""How far bfloat16 and bases of integers are from float32, on the demo's trained base: docs/numerics.md."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.core import mesh
from thinkfirst.launch import recipes
from thinkfirst.models import lora
from thinkfirst.rl import learner, loading, packing
from thinkfirst.rl.data import source

ROWS, WIDTH = 32, 112

# (computing in, base) -> bounds, somewhat above what docs/numerics.md states, of the log-probs' relative error, their
# largest in nats, and the gradient's relative error.
BOUNDS = {
    ("bfloat16", "stored"): (0.02, 0.05, 0.04),
    ("float32", "int8"): (0.006, 0.01, 0.035),
    ("float32", "int4"): (0.12, 0.25, 0.4),
    ("bfloat16", "int8"): (0.025, 0.06, 0.05),
    ("bfloat16", "int4"): (0.12, 0.25, 0.4),
}


def opened(dtype, base_dtype):
    """The demo's base as a policy on one device."""
    devices = mesh.make(mesh.MeshConfig(), jax.devices()[:1])
    return loading.from_folder(recipes.DEMO_BASE, devices, dtype=dtype, base_dtype=base_dtype)


@functools.cache
def batch():
    """Worked problems in the words that the base was trained on, and an advantage for each row."""
    subject = opened("float32", "stored")
    problems = source.make(source.DataConfig(kind="arithmetic_plain", long=0.25), 1)
    rows = []
    for index in range(ROWS):
        shown = problems.demonstration(index)
        prompt = subject.tokenizer.prompt(shown.problem.question, "")
        rows.append((prompt, subject.tokenizer.completion(shown.completion)))
    plan = packing.one_a_row(ROWS, row_tokens=WIDTH, room=WIDTH - 1)
    return packing.lay_out(rows, plan), np.random.default_rng(0).standard_normal(ROWS).astype(np.float32)


@functools.cache
def measured(dtype, base_dtype):
    """(log-probs of the completions' tokens, gradient of an adapter of rank 16 that is not zero)."""
    subject, (rows, advantage_B) = opened(dtype, base_dtype), batch()
    fresh = lora.init(subject.model.adapted(), jax.random.key(0), rank=16, alpha=16.0)
    adapter = jax.tree.map(lambda leaf: leaf + 0.01 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), fresh)

    def gain(adapter, params):
        mask_BT = rows.mask_BT
        logp_BT, _ = learner.completion_logprob(subject.model, params, adapter, rows)
        logp_BT = jnp.where(mask_BT, logp_BT, 0.0)
        return (logp_BT * advantage_B[:, None]).sum() / mask_BT.sum(dtype=jnp.float32), (logp_BT, mask_BT)

    gradient, (logp_BT, mask_BT) = jax.jit(jax.grad(gain, has_aux=True))(adapter, subject.params)
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradient)])
    return np.asarray(logp_BT)[np.asarray(mask_BT)], flat


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "base_dtype"), BOUNDS)
def test_errors_are_what_docs_numerics_states(dtype, base_dtype):
    (logp, gradient), (exact_logp, exact_gradient) = measured(dtype, base_dtype), measured("float32", "stored")
    gap = np.abs(logp - exact_logp)
    found = (relative(logp, exact_logp), float(gap.max()), relative(gradient, exact_gradient))
    cosine = float(gradient @ exact_gradient / np.linalg.norm(gradient) / np.linalg.norm(exact_gradient))
    print(f"\n{dtype} {base_dtype}: log-probs of {len(logp)} tokens {found[0]:.2e}, {gap.mean():.2e} nats on average,")
    print(f"{found[1]:.2e} at most; gradient {found[2]:.2e}, cosine {cosine:.6f}")
    for value, bound in zip(found, BOUNDS[dtype, base_dtype], strict=True):
        assert 0 < value < bound
