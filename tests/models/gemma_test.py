"""Gemma 2 and 3 give Hugging Face's numbers, by all three ways through the model; what must not matter does not.

The golden files come from tests/golden/make_transformers.py.
"""

import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from thinkfirst.core import mesh, sharding
from thinkfirst.kernels.token_logprob import api as token_logprob
from thinkfirst.kernels.token_logprob import reference as logprob_reference
from thinkfirst.models import config, gemma, hf_config, kv_cache, weights

LENGTH, CACHE = 20, 24
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="module", params=["hf_gemma2", "hf_gemma3"])
def case(request):
    """A checkpoint folder opened by us, what transformers computed from it, and our functions compiled."""
    model = gemma.Model(hf_config.read(GOLDEN / request.param))
    grid = mesh.make(mesh.MeshConfig(), jax.devices()[:1])
    params = weights.load(GOLDEN / request.param, model, sharding.parameters(model.letters(), model.shapes(), grid))
    with np.load(GOLDEN / f"{request.param}.npz") as file:
        golden = {name: jnp.asarray(file[name]) for name in file.files}
    return types.SimpleNamespace(
        model=model,
        params=params,
        config=model.config,
        golden=golden,
        hidden=jax.jit(lambda tokens_BT, segment_BT: model.hidden(params, tokens_BT, segment_BT=segment_BT)),
        prefill=jax.jit(lambda *args: model.prefill(params, *args)),
        decode=jax.jit(lambda *args: model.decode(params, *args)),
    )


@pytest.fixture(scope="module")
def local():
    """Two local layers of window 3 with random weights: the least there is to compile."""
    model = gemma.Model(dataclasses.replace(config.demo_gemma3(), pattern=("local",), num_layers=2, window=3))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    return model, jax.tree.map(draw, model.shapes())


def segment(tokens_BT, length_B):
    return (jnp.arange(tokens_BT.shape[1]) < length_B[:, None]).astype(jnp.int32)


def logits(case, hidden_TD):
    return logprob_reference.logits(hidden_TD, case.params["embedding"], case.config.final_soft_cap)


def random_tokens(case):
    return jax.random.randint(jax.random.key(7), (2, LENGTH), 1, case.config.vocab_size)


def step_by_step(case, tokens_PT, length_P, cache):
    """Hidden states of the last token of each prompt and of the tokens after it, one at a time, [P, steps, D]."""
    room = int(length_P.max())
    garbage_PT = jnp.where(segment(tokens_PT, length_P) > 0, tokens_PT, 5)
    hidden_PD, cache = case.prefill(garbage_PT[:, :room], length_P, cache)
    found = [hidden_PD]
    for step in range(LENGTH - room):
        position_P = length_P + step
        token_P = jnp.take_along_axis(tokens_PT, position_P[:, None], axis=1)[:, 0]
        hidden_PD, cache = case.decode(token_P, position_P, cache)
        found.append(hidden_PD)
    return jnp.stack(found, axis=1)


def test_logits_are_those_of_transformers(case):
    tokens_BT, length_B = case.golden["tokens_BT"], case.golden["length_B"]
    segment_BT = segment(tokens_BT, length_B)
    hidden_TD = case.hidden(tokens_BT, segment_BT)[segment_BT > 0]
    logit_TV = logits(case, hidden_TD)
    assert jnp.abs(logit_TV).max() > 3
    # A logit is a sum of 16 products of up to 8: where they cancel, their rounding does not.
    tolerance.assert_close(logit_TV, case.golden["logit_TV"], slack=2)


def test_log_probs_of_the_next_token_are_those_of_transformers(case):
    tokens_BT, length_B = case.golden["tokens_BT"], case.golden["length_B"]
    segment_BT = segment(tokens_BT, length_B)
    hidden_BTD, next_BT = case.hidden(tokens_BT, segment_BT)[:, :-1], tokens_BT[:, 1:]
    logp_BT, _ = token_logprob.token_logprob(
        hidden_BTD,
        case.params["embedding"],
        next_BT,
        jnp.full(next_BT.shape, -jnp.inf),
        temperature=jnp.float32(1),
        soft_cap=case.config.final_soft_cap,
    )
    tolerance.assert_close(logp_BT[segment_BT[:, 1:] > 0], case.golden["next_logp_T"])


def test_greedy_continuation_is_that_of_transformers(case):
    length_P, greedy_PT = case.golden["prompt_length_B"], case.golden["greedy_BT"]
    cache = kv_cache.init(case.config, 2, CACHE)
    hidden_PD, cache = case.prefill(case.golden["tokens_BT"][:, : int(length_P.max())], length_P, cache)
    found = []
    for step in range(greedy_PT.shape[1]):
        found.append(jnp.argmax(logits(case, hidden_PD), axis=1).astype(jnp.int32))
        hidden_PD, cache = case.decode(found[-1], length_P + step, cache)
    tolerance.assert_close(jnp.stack(found, axis=1), greedy_PT)


def test_a_later_token_changes_nothing_before_it(case):
    tokens_BT = random_tokens(case)
    segment_BT = jnp.ones_like(tokens_BT)
    hidden_BTD = case.hidden(tokens_BT, segment_BT)
    for place in range(LENGTH):
        changed_BT = tokens_BT.at[:, place].set((tokens_BT[:, place] + 1) % case.config.vocab_size)
        differs_BT = np.asarray((case.hidden(changed_BT, segment_BT) != hidden_BTD).any(axis=2))
        assert not differs_BT[:, :place].any() and differs_BT[:, place].all(), place


def test_a_local_layer_sees_no_further_than_its_window(local):
    model, params = local
    tokens_BT = jnp.stack([jnp.arange(9), jnp.arange(9).at[0].set(40)])
    hidden_BTD = jax.jit(model.hidden)(params, tokens_BT, segment_BT=jnp.ones_like(tokens_BT))
    # Two layers of window 3 look back 2 * (3 - 1) tokens, so the first token is last felt at position 4.
    np.testing.assert_array_equal(np.asarray((hidden_BTD[0] != hidden_BTD[1]).any(axis=1)), np.arange(9) <= 4)


def test_padding_cannot_matter(case):
    tokens_BT, length_B = case.golden["tokens_BT"], case.golden["length_B"]
    segment_BT = segment(tokens_BT, length_B)
    valid_BT = segment_BT > 0
    hidden_BTD = case.hidden(tokens_BT, segment_BT)
    other_BTD = case.hidden(jnp.where(valid_BT, tokens_BT, 9), segment_BT)
    np.testing.assert_array_equal(hidden_BTD[valid_BT], other_BTD[valid_BT])
    longer_BT = jnp.pad(tokens_BT, ((0, 0), (0, 9)), constant_values=11)
    longer_BTD = case.hidden(longer_BT, segment(longer_BT, length_B))
    tolerance.assert_close(longer_BTD[:, :LENGTH][valid_BT], hidden_BTD[valid_BT])


def test_segments_do_not_see_each_other(case):
    tokens_BT = random_tokens(case)
    segment_BT = jnp.broadcast_to(jnp.where(jnp.arange(LENGTH) < 9, 1, 2), tokens_BT.shape)
    hidden_BTD, other_BTD = (case.hidden(tokens_BT.at[:, :9].add(i), segment_BT) for i in (0, -1))
    np.testing.assert_array_equal(hidden_BTD[:, 9:], other_BTD[:, 9:])
    shared_BTD = case.hidden(tokens_BT, jnp.ones_like(tokens_BT))
    np.testing.assert_array_equal(hidden_BTD[:, :9], shared_BTD[:, :9])
    assert (hidden_BTD[:, 9:] != shared_BTD[:, 9:]).any(axis=2).all()


def test_prefill_and_decode_are_the_full_forward(case):
    tokens_PT, length_P = random_tokens(case), jnp.array([9, 1])
    scratch = jax.tree.map(lambda leaf: leaf + jnp.nan, kv_cache.init(case.config, 2, CACHE))
    found_PTD = step_by_step(case, tokens_PT, length_P, scratch)
    whole_PTD = case.hidden(tokens_PT, jnp.ones_like(tokens_PT))
    tolerance.assert_close(found_PTD[0], whole_PTD[0, 8:])  # rings of six slots, so they wrap twice
    tolerance.assert_close(found_PTD[1], whole_PTD[1, : found_PTD.shape[1]])


def test_rings_are_worth_a_full_cache(case):
    tokens_PT, length_P = random_tokens(case), jnp.array([9, 1])
    ring, full = (kv_cache.init(case.config, 2, CACHE, full=switch) for switch in (False, True))
    assert [cache["stack_0"]["layer_0"].key_LBSKH.shape[2] for cache in (ring, full)] == [6, CACHE]
    from_ring, from_full = (step_by_step(case, tokens_PT, length_P, cache) for cache in (ring, full))
    tolerance.assert_close(from_ring, from_full)


def test_remat_changes_nothing(local):
    model, params = local
    tokens_BT = jnp.arange(12).reshape(1, 12)

    def run(*, remat):
        def loss(params):
            hidden_BTD = model.hidden(params, tokens_BT, segment_BT=jnp.ones_like(tokens_BT), remat=remat)
            return jnp.sin(hidden_BTD).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    (plain, gradient), (again, recomputed) = run(remat=False), run(remat=True)
    tolerance.assert_close(again, plain)
    jax.tree.map(tolerance.assert_close, recomputed, gradient)


def test_letters_name_every_axis_of_the_parameters(case):
    size = {"V": 64, "D": 16, "F": 24, "N": 4, "K": case.config.num_kv_heads, "H": 8}

    def agree(letters, leaf):
        sizes = leaf.shape[1:] if letters.startswith("L") else leaf.shape
        assert sizes == tuple(size[letter] for letter in letters.removeprefix("L"))

    jax.tree.map(agree, case.model.letters(), case.params)
