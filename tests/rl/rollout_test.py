import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.core import mesh, sharding
from thinkfirst.models import config, gemma, lora
from thinkfirst.rl import batch, learner, rollout

TINY = config.GemmaConfig(
    generation=3, vocab_size=64, num_layers=3, width=16, ff_width=32, num_heads=4, num_kv_heads=2, head_dim=8, window=6,
    pattern=("local", "global"), query_scalar=8, global_rope_base=1e5, dtype="float32",
)  # fmt: skip
NUM_PROMPTS, GROUP, ROOM = 4, 3, 12

pytestmark = pytest.mark.slow  # every engine is a compilation


@functools.cache
def policy(data, fsdp, tensor):
    """(model, mesh, parameters, adapter) on a mesh of that shape; always the same numbers."""
    model = gemma.Model(TINY)
    devices = jax.devices()[: data * fsdp * tensor]
    layout = mesh.make(mesh.MeshConfig(data=data, fsdp=fsdp, tensor=tensor), devices)
    params = jax.tree.map(lambda x: 2 * x, model.init(0))  # larger than at random: more telling distributions
    adapter = lora.init(model.adapted(), jax.random.key(1), rank=2, alpha=4.0)
    adapter = jax.tree.map(lambda x: x + 0.03, adapter)
    params = jax.device_put(params, sharding.parameters(model.letters(), params, layout))
    letters = lora.letters(model.adapted(), adapter)
    return model, layout, params, jax.device_put(adapter, sharding.parameters(letters, adapter, layout))


def prompts(order=range(NUM_PROMPTS)):
    rng = np.random.default_rng(5)
    tokens = rng.integers(2, 64, (NUM_PROMPTS, 10)).astype(np.int32)
    length = np.array([10, 3, 7, 9], np.int32)
    ids = np.array([11, 22, 33, 44], np.uint32)
    order = list(order)
    return batch.Prompts(tokens[order], length[order], ids[order])


def sample(asked, *, shape=(1, 1, 1), group=GROUP, stop_ids=(1, 5, 9), full=False, new=ROOM, **chosen):
    model, layout, params, adapter = policy(*shape)
    engine = rollout.Engine(model, layout, group=group, room=ROOM, stop_ids=stop_ids, full=full)
    sampling = batch.Sampling.of(max_new_tokens=new, **chosen)
    return jax.device_get(engine.sample(params, adapter, asked, sampling, jax.random.key(2)))


SETTINGS = [
    {},
    {"temperature": 0.7, "top_k": 8},
    {"temperature": 1.3, "top_p": 0.8, "top_k": 20},
    {"temperature": 1.1, "min_p": 0.1},
    {"top_p": 0.9, "top_k": 30, "min_p": 0.05},
]


@pytest.mark.parametrize("chosen", SETTINGS)
def test_on_policy_identity(chosen):
    """The learner finds the engine's log-probs again, at every sampler setting."""
    found = sample(prompts(), **chosen)
    model, _, params, adapter = policy(1, 1, 1)
    rows = jax.device_put(batch.experience(prompts(), found, np.zeros(NUM_PROMPTS * GROUP, np.float32)))
    logp_BT, _ = learner.completion_logprob(
        model, params, adapter, rows, temperature=jnp.float32(chosen.get("temperature", 1.0))
    )
    mask_BT = np.asarray(batch.length_mask(found.length_B, ROOM))
    assert np.abs(np.asarray(logp_BT) - found.logp_BT)[mask_BT].max() <= 1e-5
    assert (found.logp_BT[mask_BT] < 0).any()
    if chosen:
        assert np.isfinite(found.floor_BT[mask_BT]).any()


def test_lengths_and_stops():
    """A row ends with its first stop token, which is counted; after it there is nothing."""
    found = sample(prompts())
    assert 0 < found.stopped_B.sum() < len(found.stopped_B)
    for tokens, length, stopped in zip(found.tokens_BT, found.length_B, found.stopped_B, strict=True):
        hits = np.isin(tokens[:length], (1, 5, 9))
        assert hits[:-1].sum() == 0
        assert hits[-1] == stopped
        assert stopped or length == ROOM
        assert (tokens[length:] == 0).all()


def test_stop_token_of_the_first_draw_ends_the_row():
    found = sample(prompts(), stop_ids=tuple(range(64)))
    assert (found.length_B == 1).all()
    assert found.stopped_B.all()


def test_limit_of_new_tokens_is_data():
    found = sample(prompts(), stop_ids=(-1,), new=4)
    assert (found.length_B == 4).all()
    assert not found.stopped_B.any()
    with pytest.raises(ValueError, match="room for 12"):
        sample(prompts(), new=13)


def test_ring_cache_equals_full_cache():
    """Windows of 6 against sequences of up to 22."""
    ring, full = sample(prompts(), stop_ids=(-1,)), sample(prompts(), stop_ids=(-1,), full=True)
    assert ring.tokens_BT.tolist() == full.tokens_BT.tolist()
    tolerance.assert_close(ring.logp_BT, full.logp_BT)


def test_prefill_once_equals_prefill_per_sample():
    """Sample 0 of each group, drawn in a group of three and alone."""
    together, alone = sample(prompts()), sample(prompts(), group=1)
    assert together.tokens_BT[::GROUP].tolist() == alone.tokens_BT.tolist()
    tolerance.assert_close(together.logp_BT[::GROUP], alone.logp_BT)


def test_a_sample_depends_on_nothing_but_its_key():
    """Other order of prompts, other padding: the same completions."""
    straight, turned = sample(prompts()), sample(prompts(order=[3, 2, 1, 0]))
    by_prompt = turned.tokens_BT.reshape(NUM_PROMPTS, GROUP, -1)[::-1]
    assert by_prompt.reshape(straight.tokens_BT.shape).tolist() == straight.tokens_BT.tolist()
    wide = prompts()
    wide = batch.Prompts(np.pad(wide.tokens_PT, ((0, 0), (0, 7)), constant_values=3), wide.length_P, wide.id_P)
    assert sample(wide).tokens_BT.tolist() == straight.tokens_BT.tolist()


def test_samples_of_a_group_differ():
    rows = sample(prompts()).tokens_BT.reshape(NUM_PROMPTS, GROUP, -1)
    assert sum(len({tuple(row) for row in group}) > 1 for group in rows) >= 3


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 2)])
def test_every_mesh_draws_the_same(shape):
    """Eight shards of four prompts also proves that padding rows are dropped."""
    one, many = sample(prompts()), sample(prompts(), shape=shape)
    assert many.tokens_BT.tolist() == one.tokens_BT.tolist()
    tolerance.assert_close(many.logp_BT, one.logp_BT)


def test_greedy_takes_the_likeliest():
    found = sample(prompts(), temperature=0.0)
    groups = found.tokens_BT.reshape(NUM_PROMPTS, GROUP, -1)
    assert (groups == groups[:, :1]).all()
