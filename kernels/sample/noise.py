"""Gumbel noise that is a function of (row key, vocabulary index) alone, in plain jnp that also runs inside a kernel.

    word  = first word of threefry2x32(key of the row, counter = (DOMAIN, vocabulary index))      20 rounds
    u     = (top 23 bits of the word + 1/2) / 2**23                                               exact in float32
    noise = -log(-log(u))                                                     between -2.82 and 16.64, never infinite

Threefry: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).  No word depends on the shape of a
block, on the batch, or on how the vocabulary is split, so every one of them draws the same tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt

DOMAIN = 0x47554D42  # "GUMB": counters that jax.random does not use, should it see the same key
KEY_WORDS = 2

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry2x32(
    key: tuple[UInt[Array, "*key"], UInt[Array, "*key"]],
    counter: tuple[UInt[Array, "*left"], UInt[Array, "*right"]],
) -> tuple[UInt[Array, "*words"], UInt[Array, "*words"]]:
    """Two random words of 32 bits; keys and counters broadcast."""
    schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    left, right = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            left = left + right
            right = ((right << jnp.uint32(turn)) | (right >> jnp.uint32(32 - turn))) ^ left
        left = left + schedule[(group + 1) % 3]
        right = right + (schedule[(group + 2) % 3] + jnp.uint32(group + 1))
    return left, right


def gumbel_of_word(word: UInt[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Standard Gumbel noise of random words, by the inverse of its distribution function."""
    one_to_two = jax.lax.bitcast_convert_type((word >> jnp.uint32(9)) | jnp.uint32(0x3F800000), jnp.float32)
    return -jnp.log(-jnp.log(one_to_two - jnp.float32(1 - 2**-24)))


def gumbel(
    key: tuple[UInt[Array, "*key"], UInt[Array, "*key"]], index: UInt[Array, "*index"]
) -> Float[Array, "*shape"]:
    """Noise of each vocabulary index under each key; the two broadcast."""
    return gumbel_of_word(threefry2x32(key, (jnp.uint32(DOMAIN), index))[0])


def key_words(key_B: Key[Array, "B"]) -> UInt[Array, "B 2"]:
    """The two words of each key: those of JAX's default generator, Threefry."""
    words = jax.random.key_data(key_B)
    if words.shape[1] != KEY_WORDS:
        raise ValueError(f"keys of {words.shape[1]} words: sampling takes jax.random keys of the kind threefry2x32")
    return words


def gumbel_rows(key_words: UInt[Array, "B 2"], index_V: Int[Array, "V"]) -> Float[Array, "B V"]:
    """Noise of every row at the vocabulary indices given."""
    return gumbel((key_words[:, :1], key_words[:, 1:]), index_V.astype(jnp.uint32)[None, :])
