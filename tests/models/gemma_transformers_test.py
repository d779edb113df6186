"""Gemma 2 and 3 are those of Hugging Face transformers: logits, log-probs, greedy continuations, gradients.

The golden files come from tests/golden/make_transformers.py; `make parity` makes others, of other weights.
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
from thinkfirst.kernels.token_logprob import api as token_logprob
from thinkfirst.kernels.token_logprob import reference as logprob_reference
from thinkfirst.models import gemma, layout

LOGITS, GRADIENT = 2e-5, 1e-4  # largest difference, as a part of the largest value


@pytest.fixture(scope="module", params=["hf_gemma2", "hf_gemma3"])
def case(request):
    """A checkpoint opened by us and what transformers computed from it."""
    model, params = checkpoints.opened(request.param)
    golden = dict(np.load(checkpoints.GOLDEN / f"{request.param}.npz"))
    rows = [row[:length] for row, length in zip(golden["tokens_BT"], golden["length_B"], strict=True)]
    return types.SimpleNamespace(model=model, params=params, config=model.config, golden=golden, rows=rows)


def logits(case, hidden_TD):
    return logprob_reference.logits(hidden_TD, case.params["embedding"], case.config.final_soft_cap)


def batch_logits(case, lines):
    """Logits of the tokens, without the padding, of lines of (segment, tokens) pieces; padding is token 9."""
    tokens_BT = jnp.asarray([[token for _, tokens in line for token in tokens] for line in lines])
    segment_BT = jnp.asarray([[segment for segment, tokens in line for _ in tokens] for line in lines])
    hidden_BTD = jax.jit(case.model.hidden)(case.params, tokens_BT, segment_BT=segment_BT)
    return logits(case, hidden_BTD[segment_BT > 0])


def padding(case, row):
    return 0, np.full(case.golden["tokens_BT"].shape[1] - len(row), 9)


def next_logp(case, params):
    """Log-prob of every token that has one before it, as the loss takes it."""
    tokens_BT, length_B = case.golden["tokens_BT"], case.golden["length_B"]
    segment_BT = (np.arange(tokens_BT.shape[1]) < length_B[:, None]).astype(np.int32)
    hidden_BTD = case.model.hidden(params, jnp.asarray(tokens_BT), segment_BT=jnp.asarray(segment_BT))
    logp_BT, _ = token_logprob.token_logprob(
        hidden_BTD[:, :-1],
        params["embedding"],
        jnp.asarray(tokens_BT[:, 1:]),
        jnp.full(tokens_BT[:, 1:].shape, -jnp.inf),
        temperature=jnp.float32(1),
        soft_cap=case.config.final_soft_cap,
    )
    return logp_BT[segment_BT[:, 1:] > 0]


def test_logits_of_rows_padded_on_the_right(case):
    assert np.abs(case.golden["right_TV"]).max() > 3
    found_TV = batch_logits(case, [[(1, row), padding(case, row)] for row in case.rows])
    tolerance.assert_near(found_TV, case.golden["right_TV"], part=LOGITS)


def test_logits_of_rows_padded_on_the_left(case):
    found_TV = batch_logits(case, [[padding(case, row), (1, row)] for row in case.rows])
    tolerance.assert_near(found_TV, case.golden["left_TV"], part=LOGITS)


def test_logits_of_packed_rows_are_those_of_each_sequence_alone(case):
    first, second, third = case.rows
    room = len(first) + len(second)
    lines = [[(1, first), (2, second)], [(1, third), (2, first), (0, np.full(room - len(third) - len(first), 9))]]
    alone = np.split(case.golden["alone_TV"], np.cumsum(case.golden["length_B"])[:-1])
    expected_TV = np.concatenate([alone[0], alone[1], alone[2], alone[0]])
    tolerance.assert_near(batch_logits(case, lines), expected_TV, part=LOGITS)


@pytest.mark.parametrize("name", ["hf_gemma2_sharded", "hf_gemma3_bf16", "hf_gemma3_mm"])
def test_logits_of_checkpoints_in_other_shapes(name):
    model, params = checkpoints.opened(name)
    model = gemma.Model(dataclasses.replace(model.config, dtype="float32"))
    golden = dict(np.load(checkpoints.GOLDEN / f"{name}.npz"))
    segment_BT = (np.arange(golden["tokens_BT"].shape[1]) < golden["length_B"][:, None]).astype(np.int32)
    found = jax.jit(model.hidden)(params, jnp.asarray(golden["tokens_BT"]), segment_BT=jnp.asarray(segment_BT))
    logit_TV = logprob_reference.logits(found[segment_BT > 0], params["embedding"], model.config.final_soft_cap)
    tolerance.assert_near(logit_TV, golden["right_TV"], part=LOGITS)


def test_log_probs_of_the_next_token(case):
    tolerance.assert_near(
        jax.jit(lambda params: next_logp(case, params))(case.params), case.golden["next_logp_T"], part=LOGITS
    )


def test_greedy_continuations_and_their_log_probs(case):
    length_P, greedy_PT = jnp.asarray(case.golden["prompt_length_B"]), case.golden["greedy_BT"]
    room = int(length_P.max())
    prompt_PT = jnp.asarray(case.golden["tokens_BT"][: len(length_P), :room])
    rows = stepwise.Decoder((case.model, case.params, None), prompt_PT, length_P, new=greedy_PT.shape[1])
    found, logp = [], []
    for _ in range(greedy_PT.shape[1]):
        logp_PV = jax.nn.log_softmax(logits(case, rows.hidden_BD))
        found.append(jnp.argmax(logp_PV, axis=1).astype(jnp.int32))
        logp.append(logp_PV.max(axis=1))
        rows.step(found[-1])
    np.testing.assert_array_equal(jnp.stack(found, axis=1), greedy_PT)
    tolerance.assert_near(jnp.stack(logp, axis=1), case.golden["greedy_logp_BT"], part=LOGITS)


def test_gradients_of_the_mean_log_prob(case):
    gradient = jax.jit(jax.grad(lambda params: -next_logp(case, params).mean()))(case.params)
    theirs = {name.removeprefix("gradient/"): array for name, array in case.golden.items() if "gradient/" in name}
    assert len(theirs) >= 3
    for leaf in layout.huggingface(case.config, case.model.letters()):
        ours = layout.at(gradient, leaf.path)
        for row, stored in zip(ours if leaf.stacked else [ours], leaf.stored, strict=True):
            if stored.name in theirs:
                expected = theirs.pop(stored.name)
                expected = layout.to_ours(expected, stored.axes, leaf.letters, layout.sizes(case.config))
                tolerance.assert_near(row, expected, part=GRADIENT)
    assert not theirs
