"""All three ways through Gemma 2 and 3 agree, and what must not matter does not.

That the numbers are right is shown in gemma_transformers_test.py and gemma_tunix_test.py.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import checkpoints
import stepwise
import tolerance
from thinkfirst.models import config, gemma, remat

LENGTH = 20


@pytest.fixture(scope="module", params=["hf_gemma2", "hf_gemma3"])
def case(request):
    """A checkpoint folder opened by us, and our functions compiled."""
    model, params = checkpoints.opened(request.param)
    return types.SimpleNamespace(
        model=model,
        params=params,
        config=model.config,
        hidden=jax.jit(lambda tokens_BT, segment_BT: model.hidden(params, tokens_BT, segment_BT=segment_BT)),
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


def random_tokens(case):
    return jax.random.randint(jax.random.key(7), (2, LENGTH), 1, case.config.vocab_size)


def step_by_step(case, tokens_PT, length_P, *, of_row_B=(0, 1)):
    """Hidden states after each prompt and after every token of the rows that continue them, [B, steps, D]."""
    room, of_row_B = int(length_P.max()), jnp.array(of_row_B)
    garbage_PT = jnp.where(segment(tokens_PT, length_P) > 0, tokens_PT, 5)[:, :room]
    rows = stepwise.Decoder((case.model, case.params, None), garbage_PT, length_P, new=LENGTH, of_row_B=of_row_B)
    found = [rows.hidden_BD]
    for turn in range(LENGTH - room):
        position_B = length_P[of_row_B] + turn
        token_B = jnp.take_along_axis(tokens_PT[of_row_B], position_B[:, None], axis=1)[:, 0]
        found.append(rows.step(token_B))
    return jnp.stack(found, axis=1)


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
    tokens_BT, length_B = random_tokens(case), jnp.array([LENGTH, 13])
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
    found_BTD = step_by_step(case, tokens_PT, length_P)
    whole_PTD = case.hidden(tokens_PT, jnp.ones_like(tokens_PT))
    tolerance.assert_close(found_BTD[0], whole_PTD[0, 8:])  # rings of six slots, so they wrap twice
    tolerance.assert_close(found_BTD[1], whole_PTD[1, : found_BTD.shape[1]])


def test_rows_share_prompts_in_any_order(case):
    tokens_PT, length_P = random_tokens(case), jnp.array([9, 1])
    one_each = step_by_step(case, tokens_PT, length_P)
    shared_BTD = step_by_step(case, tokens_PT, length_P, of_row_B=(1, 0, 1, 1))
    tolerance.assert_close(shared_BTD, one_each[jnp.array([1, 0, 1, 1])])


@pytest.mark.parametrize("name", remat.NAMES[1:])
def test_remat_changes_nothing(local, name, monkeypatch):
    monkeypatch.setattr(remat, "PART", 4)  # the feed-forward in three parts
    model, params = local
    tokens_BT = jnp.arange(12).reshape(1, 12)

    def run(*, remat):
        def loss(params):
            hidden_BTD = model.hidden(params, tokens_BT, segment_BT=jnp.ones_like(tokens_BT), remat=remat)
            return jnp.sin(hidden_BTD).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    (plain, gradient), (again, recomputed) = run(remat="none"), run(remat=name)
    tolerance.assert_close(again, plain)
    jax.tree.map(tolerance.assert_close, recomputed, gradient)


def test_letters_name_every_axis_of_the_parameters(case):
    size = {"V": 64, "D": 16, "F": 24, "N": 4, "K": case.config.num_kv_heads, "H": 8}

    def agree(letters, leaf):
        sizes = leaf.shape[1:] if letters.startswith("L") else leaf.shape
        assert sizes == tuple(size[letter] for letter in letters.removeprefix("L"))

    jax.tree.map(agree, case.model.letters(), case.params)
