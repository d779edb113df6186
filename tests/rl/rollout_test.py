"""The engine draws what one-row-at-a-time decoding draws, whatever its lanes, its mesh and its neighbours are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import naive
from thinkfirst.core import mesh, sharding
from thinkfirst.models import config, gemma, lora
from thinkfirst.rl import batch, learner, packing, rollout, stopping

TINY = config.GemmaConfig(
    generation=3, vocab_size=64, num_layers=3, width=32, ff_width=48, num_heads=4, num_kv_heads=2, head_dim=8, window=6,
    pattern=("local", "global"), query_scalar=8, global_rope_base=1e5, dtype="float32",
)  # fmt: skip
CAPPED = dataclasses.replace(TINY, generation=2, attention_soft_cap=20.0, final_soft_cap=15.0, num_kv_heads=1)
MODELS = {
    "gemma3, window inside the prompt": TINY,
    "gemma3, window behind the end": dataclasses.replace(TINY, window=64),
    "gemma2, window across": dataclasses.replace(CAPPED, window=13),
}
NUM_PROMPTS, GROUP, ROOM, STOPS = 5, 3, 12, (1, 5, 9)
KEY = jax.random.key(2)

pytestmark = pytest.mark.slow  # every engine is a compilation


@functools.cache
def policy(sizes, data, fsdp, tensor):
    """(model, mesh, parameters, adapter) on a mesh of that shape; always the same numbers."""
    devices = jax.devices()[: data * fsdp * tensor]
    layout = mesh.make(mesh.MeshConfig(data=data, fsdp=fsdp, tensor=tensor), devices)
    model = gemma.Model(sizes, layout)
    params = jax.tree.map(lambda x: 2 * x, model.init(0))  # larger than at random: more telling distributions
    adapter = lora.init(model.adapted(), jax.random.key(1), rank=2, alpha=4.0)
    adapter = jax.tree.map(lambda x: x + 0.03, adapter)
    params = jax.device_put(params, sharding.parameters(model.letters(), params, layout))
    letters = lora.letters(model.adapted(), adapter)
    return model, layout, params, jax.device_put(adapter, sharding.parameters(letters, adapter, layout))


@functools.cache
def engine(sizes=TINY, shape=(1, 1, 1), *, lanes=4, stop_ids=STOPS, room=ROOM):
    model, layout, _, _ = policy(sizes, *shape)
    return rollout.Engine(model, layout, room=room, stop_ids=stop_ids, lanes=lanes)


def prompts(order=range(NUM_PROMPTS)):
    rng = np.random.default_rng(5)
    tokens = rng.integers(2, 64, (NUM_PROMPTS, 10)).astype(np.int32)
    length, order = np.array([10, 3, 7, 9, 1], np.int32), list(order)
    return batch.Prompts(tokens[order], length[order], (11 * np.arange(1, 6)).astype(np.uint32)[order])


def sample(asked, chosen=None, *, sizes=TINY, shape=(1, 1, 1), group=GROUP, new=ROOM, **how):
    _, _, params, adapter = policy(sizes, *shape)
    sampling = batch.Sampling.of(max_new_tokens=1, **(chosen or {}))
    sampling = dataclasses.replace(sampling, max_new_tokens=np.asarray(new))
    with jax.transfer_guard("disallow"):
        return engine(sizes, shape, **how).sample(params, adapter, asked, sampling, KEY, group=group)


def expected(asked, chosen=None, *, sizes=TINY, group=GROUP, new=ROOM, stop_ids=STOPS):
    model, _, params, adapter = policy(sizes, 1, 1, 1)
    sampling = batch.Sampling.of(max_new_tokens=1, **(chosen or {}))
    sampling = dataclasses.replace(sampling, max_new_tokens=np.asarray(new))
    return naive.rollout((model, params, adapter), asked, sampling, KEY, group=group, stop_ids=stop_ids)


def assert_same(found, wanted):
    """Token for token, and log-probs to 1e-5."""
    for row, (tokens, logps, stopped) in enumerate(wanted):
        assert found.tokens_BT[row].tolist() == tokens + [0] * (found.tokens_BT.shape[1] - len(tokens)), row
        assert (found.length_B[row], found.stopped_B[row]) == (len(tokens), stopped), row
        assert np.abs(found.logp_BT[row, : len(tokens)] - logps).max() <= 1e-5, row


@pytest.mark.parametrize("name", MODELS)
def test_lanes_draw_what_single_rows_draw(name):
    """Fifteen rows through four lanes, with prompts of 1 to 10 tokens."""
    found = sample(prompts(), sizes=MODELS[name])
    assert_same(found, expected(prompts(), sizes=MODELS[name]))
    assert 0 < found.stopped_B.sum() < len(found.stopped_B)


@pytest.mark.parametrize(("group", "lanes"), [(1, 2), (2, 3), (8, 4), (3, 64), (5, 1)])
def test_neither_group_nor_lanes_matter(group, lanes):
    found = sample(prompts(), group=group, lanes=lanes)
    assert_same(found, expected(prompts(), group=group))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 4)])
def test_no_mesh_draws_anything_else(shape):
    """Eight shards of five prompts: three have nothing to do."""
    assert_same(sample(prompts(), shape=shape, lanes=2), expected(prompts()))


SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 1.5},
    {"top_k": 8},
    {"top_k": 1},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.3, "top_p": 0.8, "top_k": 20},
    {"temperature": 0.8, "top_p": 0.95, "top_k": 30, "min_p": 0.02},
]


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
def test_on_policy_identity(chosen):
    """The learner finds the engine's log-probs again, at every sampler setting: ratio 1."""
    found = sample(prompts(), chosen)
    model, _, params, adapter = policy(TINY, 1, 1, 1)
    samples = batch.samples(batch.unpadded(prompts()), found, np.zeros(NUM_PROMPTS * GROUP, np.float32))
    plan = packing.one_a_row(len(samples), row_tokens=10 + ROOM, room=ROOM)
    known = jax.device_put(packing.experience(samples, plan))
    temperature = jnp.float32(chosen.get("temperature", 1.0) or 1.0)
    logp_BT, _ = learner.completion_logprob(
        model, params, adapter, known.rows, floor_BT=known.floor_BT, temperature=temperature
    )
    mask_BT = np.asarray(batch.length_mask(found.length_B, ROOM))
    assert np.abs(np.asarray(logp_BT) - found.logp_BT)[mask_BT].max() <= 1e-5
    drops = set(chosen) & {"top_k", "top_p", "min_p"}
    assert np.isfinite(found.floor_BT[mask_BT]).any() == bool(drops)
    if chosen != {"top_k": 1}:
        assert (found.logp_BT[mask_BT] < 0).any()


def test_limits_are_data_and_each_row_may_have_its_own():
    new = np.resize([1, 12, 3, 7], NUM_PROMPTS * GROUP)
    assert_same(sample(prompts(), new=new), expected(prompts(), new=new))
    with pytest.raises(ValueError, match="13 new tokens asked of an engine with room for 12"):
        sample(prompts(), new=13)


def test_8_bit_caches_move_log_probs_by_little():
    """The same greedy start; log-probs within .1 nat of it, where random numbers are off by 1 % of their largest."""
    model, layout, params, adapter = policy(TINY, 1, 1, 1)
    coded = rollout.Engine(model, layout, room=ROOM, stop_ids=STOPS, lanes=4, int8=True)
    sampling = batch.Sampling.of(max_new_tokens=ROOM)
    found = coded.sample(params, adapter, prompts(), sampling, KEY, group=GROUP)
    exact = sample(prompts())
    assert coded.metrics["rollout/cache_bytes"] < 0.4 * engine(TINY, (1, 1, 1)).metrics["rollout/cache_bytes"]
    gaps = []
    for row in range(NUM_PROMPTS * GROUP):  # as far as both drew the same tokens
        same = np.cumprod(found.tokens_BT[row] == exact.tokens_BT[row]).astype(bool)
        same[found.length_B[row] :] = False
        gaps += np.abs(found.logp_BT[row] - exact.logp_BT[row])[same].tolist()
    assert len(gaps) > 60 and 0 < np.mean(gaps) < 0.02 and max(gaps) < 0.1


def test_the_first_token_may_be_the_last():
    found = sample(prompts(), stop_ids=tuple(range(64)))
    assert (found.length_B == 1).all() and found.stopped_B.all()


def test_a_sample_depends_on_nothing_but_its_key():
    """Other order of prompts, other padding: the same completions."""
    straight, turned = sample(prompts()), sample(prompts(order=[4, 3, 2, 1, 0]))
    by_prompt = turned.tokens_BT.reshape(NUM_PROMPTS, GROUP, -1)[::-1]
    assert by_prompt.reshape(straight.tokens_BT.shape).tolist() == straight.tokens_BT.tolist()
    wide = prompts()
    wide = batch.Prompts(np.pad(wide.tokens_PT, ((0, 0), (0, 7)), constant_values=3), wide.length_P, wide.id_P)
    assert sample(wide).tokens_BT.tolist() == straight.tokens_BT.tolist()
    groups = straight.tokens_BT.reshape(NUM_PROMPTS, GROUP, -1)
    assert sum(len({tuple(row) for row in group}) > 1 for group in groups) >= 3


@pytest.mark.long
def test_settings_compile_nothing_anew():
    """Batches of 3 and 4 prompts, limits and sampler settings change; the program does not."""
    used = engine(TINY, (1, 1, 1), lanes=4)
    sample(prompts(range(4)), lanes=4)
    sample(prompts(range(4)), {"top_k": 3}, lanes=4)
    before, rng = used.compiles, np.random.default_rng(0)
    for call in range(20):
        chosen = {"temperature": float(rng.uniform(0.5, 2)), "top_p": float(rng.uniform(0.5, 1)) if call % 2 else 1.0}
        order = rng.permutation(5)[: rng.integers(3, 5)]
        sample(prompts(order), chosen, new=int(rng.integers(1, ROOM + 1)), lanes=4)
    assert used.compiles == before


def test_rows_end_at_a_string_that_straddles_tokens():
    """The host reads tokens as two letters each and ends rows at a text that begins inside of one."""
    whole = sample(prompts(), stop_ids=(63,))
    spell = lambda tokens: "".join(f"{token:02d}" for token in tokens)  # noqa: E731
    row = int(np.argmax(whole.length_B >= 8))
    text = spell(whole.tokens_BT[row, :8])[9:12]  # the second half of token 4, and all of token 5
    cut = stopping.at_strings([text], spell)
    _, _, params, adapter = policy(TINY, 1, 1, 1)
    *parts, last = engine(stop_ids=(63,)).stream(
        params, adapter, prompts(), batch.Sampling.of(max_new_tokens=ROOM), KEY, group=GROUP, turns=2, cut=cut
    )
    assert len(parts) > 2 and not parts[0].ended_B.all() and last.ended_B.all()
    for one in range(NUM_PROMPTS * GROUP):
        tokens = whole.tokens_BT[one, : whole.length_B[one]].tolist()
        hits = [count for count in range(1, len(tokens) + 1) if text in spell(tokens[:count])]
        kept = tokens[: hits[0]] if hits else tokens
        assert last.rollout.tokens_BT[one].tolist() == kept + [0] * (ROOM - len(kept))
        assert last.rollout.stopped_B[one] == (bool(hits) or whole.stopped_B[one])
    assert last.rollout.length_B[row] <= 6 < whole.length_B[row]


def test_no_prompts_are_no_rows():
    nothing = batch.Prompts(np.zeros((0, 10), np.int32), np.zeros(0, np.int32), np.zeros(0, np.uint32))
    assert sample(nothing).tokens_BT.shape == (0, ROOM)


def test_weights_that_are_not_numbers_end_every_row_at_once():
    """And leave nothing behind: the next call is what it would have been."""
    used = engine(lanes=4)
    _, _, params, adapter = policy(TINY, 1, 1, 1)
    sampling = batch.Sampling.of(max_new_tokens=ROOM)
    broken = {**params, "embedding": params["embedding"] * jnp.nan}
    found = used.sample(broken, adapter, prompts(), sampling, KEY, group=GROUP)
    assert (found.length_B == 1).all() and np.isnan(found.logp_BT[:, 0]).all() and not found.stopped_B.any()
    assert ((found.tokens_BT >= 0) & (found.tokens_BT < 64)).all()
    assert_same(used.sample(params, adapter, prompts(), sampling, KEY, group=GROUP), expected(prompts()))


def test_what_cannot_be_is_refused():
    model, layout, _, _ = policy(TINY, 1, 1, 1)
    with pytest.raises(ValueError, match="stop id 64 is outside the vocabulary of 64"):
        rollout.Engine(model, layout, room=4, stop_ids=(1, 64))
    with pytest.raises(ValueError, match="lanes=0"):
        rollout.Engine(model, layout, room=4, stop_ids=(), lanes=0)


def test_metrics_add_up():
    found, metrics = sample(prompts()), engine(TINY, (1, 1, 1)).metrics
    tokens = int(found.length_B.sum())
    assert round(metrics["rollout/occupancy"] * metrics["rollout/turns"] * 4) == tokens
    assert metrics["rollout/prefills"] == 5 and metrics["rollout/prompt_padding"] == 1 - 30 / 50
    assert metrics["rollout/ended_by_stop"] + metrics["rollout/ended_by_length"] == 1
    assert metrics["rollout/tokens_per_second"] > 0 and metrics["rollout/cache_bytes"] > 0
    assert 0 < metrics["rollout/time/host"] < 1


def test_shares_of_time_are_known_from_the_second_call_on():
    used = rollout.Engine(*policy(TINY, 1, 1, 1)[:2], room=ROOM, stop_ids=STOPS, lanes=4)
    _, _, params, adapter = policy(TINY, 1, 1, 1)
    for call in range(3):
        with jax.transfer_guard("disallow"):
            found = used.sample(params, adapter, prompts(), batch.Sampling.of(max_new_tokens=ROOM), KEY, group=GROUP)
        shares = {name: used.metrics[name] for name in used.metrics if "/time/" in name}
        assert len(shares) == (4 if call else 1) and all(0 < share < 1 for share in shares.values())
        assert call == 0 or sum(shares.values()) == pytest.approx(1)
    assert_same(found, expected(prompts()))


def test_greedy_takes_the_likeliest():
    groups = sample(prompts(), {"temperature": 0.0}).tokens_BT.reshape(NUM_PROMPTS, GROUP, -1)
    assert (groups == groups[:, :1]).all()
