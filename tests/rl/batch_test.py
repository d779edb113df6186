import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.rl import batch


def test_masks_come_from_lengths():
    """A pad id inside a completion counts; what is behind its length does not."""
    assert batch.length_mask(jnp.array([2, 0, 3]), 3).tolist() == [
        [True, True, False],
        [False, False, False],
        [True, True, True],
    ]


def test_prompts_are_repeated_for_the_samples_of_their_group():
    prompts = batch.Prompts(np.array([[5, 6], [7, 0]]), np.array([2, 1]), np.array([1, 2], np.uint32))
    rollout = batch.Rollout(
        tokens_BT=np.array([[1, 0], [2, 8], [3, 9], [4, 0]]),
        logp_BT=-np.array([[1, 0], [2, 8], [3, 9], [4, 0]], np.float32),
        floor_BT=np.zeros((4, 2), np.float32),
        length_B=np.array([1, 2, 2, 1]),
        stopped_B=np.ones(4, bool),
    )
    found = batch.samples(batch.unpadded(prompts), rollout, np.arange(4, dtype=np.float32))
    assert [sample.prompt for sample in found] == [[5, 6], [5, 6], [7], [7]]
    assert [sample.completion.tolist() for sample in found] == [[1], [2, 8], [3, 9], [4]]
    assert [sample.logp.tolist() for sample in found] == [[-1], [-2, -8], [-3, -9], [-4]]
    assert [sample.advantage for sample in found] == [0, 1, 2, 3]


def test_completion_tokens_are_found_by_their_columns():
    """Samples 1 and 2 in the first row, the third of nothing but a prompt in the second: three in all."""
    rows = batch.Rows(
        tokens_BT=np.array([[5, 6, 1, 7, 2, 3], [8, 9, 0, 0, 0, 0]]),
        segment_BT=np.array([[1, 1, 1, 2, 2, 2], [3, 3, 0, 0, 0, 0]]),
        column_BT=np.array([[2, 4, 5, 0], [0, 0, 0, 0]]),
    )
    assert rows.mask_BT.tolist() == [[True, True, True, False], [False] * 4]
    assert np.asarray(rows.completion_BT)[0, :3].tolist() == [1, 2, 3]
    assert rows.sample_BT.tolist() == [[1, 2, 2, 0], [0] * 4]
    assert int(rows.num_samples) == 3


def test_a_stop_token_may_be_left_out_of_what_is_learnt():
    numbers = [np.arange(1, 1 + length) for length in (3, 3, 1, 0)]
    rows = [batch.Sample([5], tokens, *[tokens.astype(np.float32)] * 2, 0.0) for tokens in numbers]
    found = batch.without_stop(rows, np.array([True, False, True, True]))
    for name in ("completion", "logp", "floor"):
        assert [getattr(sample, name).tolist() for sample in found] == [[1, 2], [1, 2, 3], [], []]


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"min_p": 1.1}, {"min_p": -0.1}, {"max_new_tokens": 0}],
)
def test_bad_sampler_settings_are_refused(bad):
    with pytest.raises(ValueError, match="bad sampler setting"):
        batch.Sampling.of(**{"max_new_tokens": 5, **bad})


def test_truncated_tells_whether_a_token_may_be_dropped():
    asked = lambda **chosen: batch.Sampling.of(max_new_tokens=1, **chosen).truncated  # noqa: E731
    assert not asked()
    assert not asked(temperature=0.0, top_k=5)
    assert asked(top_k=5)
    assert asked(top_p=0.9)
    assert asked(min_p=0.1)
