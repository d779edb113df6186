import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.kernels.sample import noise

ROWS = noise.key_words(jax.random.split(jax.random.key(0), 64))


def words(left, right):
    return tuple(jnp.uint32(word) for word in (left, right))


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_its_published_answers(key, counter, expected):
    """The known answers of the Random123 library, 20 rounds."""
    assert tuple(int(word) for word in noise.threefry2x32(words(*key), words(*counter))) == expected


def test_gumbel_of_words_by_hand():
    """u of the least, the middle and the greatest word: 2**-24, 1/2 + 2**-24, 1 - 2**-24."""
    actual = noise.gumbel_of_word(jnp.array([0, 0x80000000, 0xFFFFFFFF], jnp.uint32))
    uniform = np.array([2.0**-24, 0.5 + 2.0**-24, 1 - 2.0**-24])
    np.testing.assert_allclose(actual, -np.log(-np.log(uniform)), rtol=1e-6)


def test_noise_is_gumbel():
    """Kolmogorov-Smirnov, 262,144 values: distance times the root of their number is below 1.63 in 99 of 100."""
    values = np.sort(np.asarray(noise.gumbel_rows(ROWS, jnp.arange(4096))).reshape(-1).astype(np.float64))
    rank = np.arange(1, values.size + 1) / values.size
    distance = np.abs(np.exp(-np.exp(-values)) - rank + 0.5 / values.size).max() * np.sqrt(values.size)
    assert distance < 1.63
    assert 11 < values.max() < 17  # log of 262,144 is 12.5


def test_words_are_uniform_in_every_byte_and_independent_of_their_neighbours():
    """Chi-square of each byte (255 degrees of freedom: mean 255, deviation 22.6), correlation within 4 / sqrt(n)."""
    key = (ROWS[:, :1], ROWS[:, 1:])
    word_BV = np.asarray(noise.threefry2x32(key, (jnp.uint32(noise.DOMAIN), jnp.arange(4096, dtype=jnp.uint32)))[0])
    for byte in range(4):
        count = np.bincount((word_BV.reshape(-1) >> (8 * byte)) & 0xFF, minlength=256)
        chi_square = ((count - word_BV.size / 256) ** 2).sum() / (word_BV.size / 256)
        assert abs(chi_square - 255) < 4 * 22.6, byte
    centred_BV = word_BV / 2**32 - 0.5
    for left, right in ((centred_BV[:, 1:], centred_BV[:, :-1]), (centred_BV[1:], centred_BV[:-1])):
        assert abs((left * right).mean() * 12) < 4 / np.sqrt(left.size)


def test_a_value_depends_on_its_key_and_index_alone():
    whole_BV = noise.gumbel_rows(ROWS[:7], jnp.arange(1000))
    part_BV = jax.jit(noise.gumbel_rows)(ROWS[3:5], 600 + jnp.arange(37))
    np.testing.assert_array_equal(whole_BV[3:5, 600:637], part_BV)
    assert len(np.unique(whole_BV)) > 6990


def test_keys_of_another_generator_are_refused():
    with pytest.raises(ValueError, match="keys of 4 words"):
        noise.key_words(jax.random.split(jax.random.key(0, impl="rbg"), 3))
