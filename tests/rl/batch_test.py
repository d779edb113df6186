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


def test_join_leaves_no_gap():
    joined = batch.join(
        np.array([[5, 6, 0], [7, 8, 9]]), np.array([2, 3]), np.array([[1, 2], [3, 4]]), np.array([2, 1])
    )
    assert joined.tolist() == [[5, 6, 1, 2, 0], [7, 8, 9, 3, 0]]


def test_experience_repeats_prompts_for_their_group():
    prompts = batch.Prompts(np.array([[5, 6], [7, 0]]), np.array([2, 1]), np.array([1, 2], np.uint32))
    rollout = batch.Rollout(
        tokens_BT=np.array([[1], [2], [3], [4]]),
        logp_BT=np.zeros((4, 1), np.float32),
        floor_BT=np.zeros((4, 1), np.float32),
        length_B=np.ones(4, int),
        stopped_B=np.ones(4, bool),
    )
    found = batch.experience(prompts, rollout, np.arange(4, dtype=np.float32))
    assert found.tokens_BT.tolist() == [[5, 6, 1], [5, 6, 2], [7, 3, 0], [7, 4, 0]]
    assert found.prompt_length_B.tolist() == [2, 2, 1, 1]


def test_a_stop_token_may_be_left_out_of_what_is_learnt():
    rows = batch.Experience(None, None, None, np.array([3, 3, 1]), None, None, None)
    assert batch.without_stop(rows, np.array([True, False, True])).completion_length_B.tolist() == [2, 3, 0]


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
