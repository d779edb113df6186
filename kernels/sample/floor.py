"""The floor under the kept log-probs, without a sort: a few dozen sums over the vocabulary, which may be sharded.

The kept set is {v : logp_v >= floor}.  A learner whose numbers differ in the last bits must keep the same set, so the
floor lies half-way between the last kept and the first dropped log-prob, and where those two are nearly tied the next
tokens are kept too, until a gap opens or a dropped token is so unlikely that it could not change a log-prob noticeably.

The bits of float32 numbers, read as integers, keep their order (once those of negative numbers are flipped but for the
sign), so that at most 32 halvings of the integers find exactly
    the k-th largest log-prob:     the largest t with count(logp >= t) >= k
    the last one top-p wants:      the next after the largest t with mass(logp > t) >= top_p * mass of the top k
    the last one min-p wants:      the smallest that is at least the largest + log(min_p)
and below the highest of these the next lower log-prob is looked up until the gap to it is clear.  Where more than
MAX_STEPS of them follow, nearly tied (a distribution without any preference), they are put into buckets.

The kept set is that of `reference.truncation_floor`.  So is the floor, but for negligible equals at the edge, which it
lies under and not between.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NEAR_TIE = 1e-4  # nats between neighbours in rank
NEGLIGIBLE = -14.0  # log-probability (8e-7) below which a wrongly kept token does not matter
MAX_STEPS = 64
MAGNITUDE = 2**31 - 1  # the bits of a float32 but its sign


def truncation_floor(
    logp_BV: Float[Array, "B V"],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    min_p: Float[Array, ""],
    axis_name: str | None = None,
) -> Float[Array, "B"]:
    """Log-prob below which a token is dropped by top-k, top-p over what top-k left, or min-p; -inf if none is.

    Inside `shard_map` with `axis_name`, logp_BV is this device's equal share of the vocabulary.
    """
    order_BV, prob_BV = _order(logp_BV), jnp.exp(logp_BV)
    size = logp_BV.shape[1] * (jax.lax.psum(1, axis_name) if axis_name else 1)
    wanted = jnp.where(top_k > 0, jnp.minimum(top_k, size), size)
    least_B, most_B = -_highest(-logp_BV, axis_name), _highest(logp_BV, axis_name)
    lowest_B, highest_B = _order(least_B), _order(most_B)

    def mass_above(level_B: Int[Array, "B"]) -> Float[Array, "B"]:
        return _total(jnp.where(order_BV > level_B[:, None], prob_BV, 0.0), axis_name)

    def count_reaches_k(level_B: Int[Array, "B"]) -> Bool[Array, "B"]:
        return _total((order_BV >= level_B[:, None]).astype(jnp.int32), axis_name) >= wanted

    kth_B = _largest(count_reaches_k, lowest_B, jnp.where(wanted < size, highest_B, lowest_B))
    num_at_kth_B = wanted - _total((order_BV > kth_B[:, None]).astype(jnp.int32), axis_name)
    mass_B = mass_above(kth_B) + num_at_kth_B.astype(jnp.float32) * jnp.exp(_value(kth_B))
    before_B = kth_B - 1  # stands for "no such level"
    beyond_B = _largest(
        lambda level_B: mass_above(level_B) / mass_B >= top_p, before_B, jnp.where(top_p < 1, highest_B, before_B)
    )
    last_B = _value(jnp.minimum(beyond_B + 1, highest_B))
    near_BV = jnp.where(logp_BV >= (most_B + jnp.log(min_p))[:, None], logp_BV, jnp.inf)
    last_B = jnp.maximum(last_B, -_highest(-near_BV, axis_name))
    floor_B, found_B = _clear_gap(logp_BV, last_B, axis_name)

    def row_by_row() -> Float[Array, "B"]:
        rows = (logp_BV[:, None], last_B[:, None])
        return jnp.where(found_B, floor_B, jax.lax.map(lambda row: _far_gap(row[0], row[1], axis_name), rows)[:, 0])

    return jax.lax.cond(found_B.all(), lambda: floor_B, row_by_row)


def _clear_gap(
    logp_BV: Float[Array, "B V"], last_B: Float[Array, "B"], axis_name: str | None
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Half-way across the first gap at or below `last_B` that is wide, or has only negligible tokens below it.

    And whether MAX_STEPS were enough to find it.
    """

    def look(last_B: Array) -> tuple[Array, Array]:
        next_B = _highest(jnp.where(logp_BV < last_B[:, None], logp_BV, -jnp.inf), axis_name)
        return next_B, _clear(last_B, next_B)

    def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        steps, last_B, next_B, clear_B = state
        last_B = jnp.where(clear_B, last_B, next_B)
        return steps + 1, last_B, *look(last_B)

    state = (jnp.int32(0), last_B, *look(last_B))
    _, last_B, next_B, clear_B = jax.lax.while_loop(lambda state: ~state[3].all() & (state[0] < MAX_STEPS), step, state)
    return (last_B + next_B) / 2, clear_B


def _far_gap(logp_BV: Float[Array, "B V"], last_B: Float[Array, "B"], axis_name: str | None) -> Float[Array, "B"]:
    """What `_clear_gap` looks for, however far: by the highest and lowest log-prob of buckets narrower than NEAR_TIE.

    No gap is inside a bucket.  Above a bucket it is narrow only if one of the two buckets before it is not empty.
    """
    width = 0.95 * NEAR_TIE  # the rounding of log-probs down to NEGLIGIBLE is a hundredth of it
    buckets = math.ceil(-NEGLIGIBLE / width) + 2
    bucket_BV = jnp.clip((last_B[:, None] - logp_BV) / width, 0, buckets - 2).astype(jnp.int32)
    bucket_BV = jnp.where(logp_BV < NEGLIGIBLE, buckets - 1, bucket_BV)
    row_B1 = jnp.arange(logp_BV.shape[0])[:, None]
    empty = jnp.full((logp_BV.shape[0], buckets), -jnp.inf)
    top = empty.at[row_B1, bucket_BV].max(logp_BV)
    bottom = empty.at[row_B1, bucket_BV].max(-logp_BV)
    if axis_name:
        top, bottom = jax.lax.pmax((top, bottom), axis_name)
    before = jnp.pad(-bottom, ((0, 0), (2, 0)), constant_values=jnp.inf)
    clear = _clear(jnp.minimum(before[:, 1:-1], before[:, :-2]), top) & (top > -jnp.inf)
    place_B = jnp.argmax(clear.at[:, 0].set(False), axis=1)
    next_B = jnp.where(place_B > 0, jnp.take_along_axis(top, place_B[:, None], axis=1)[:, 0], -jnp.inf)
    above_BV = jnp.where(logp_BV > next_B[:, None], logp_BV, jnp.inf)
    return (-_highest(-above_BV, axis_name) + next_B) / 2


def _clear(last: Float[Array, "*shape"], next: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Whether a floor fits between neighbours in rank."""
    return (last - next > NEAR_TIE) | (next < NEGLIGIBLE)


def _largest(holds: Callable[[Array], Array], low_B: Int[Array, "B"], high_B: Int[Array, "B"]) -> Int[Array, "B"]:
    """The largest integer from low to high for which `holds`, which does up to some integer; low if for none."""

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low_B, high_B = bounds
        middle_B = (low_B | high_B) - ((low_B ^ high_B) >> 1)  # the mean rounded up, without overflow
        held_B = holds(middle_B)
        return jnp.where(held_B, middle_B, low_B), jnp.where(held_B, high_B, middle_B - 1)

    return jax.lax.while_loop(lambda bounds: (bounds[0] < bounds[1]).any(), halve, (low_B, high_B))[0]


def _order(value: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Integers in the order of float32 numbers."""
    bits = jax.lax.bitcast_convert_type(value, jnp.int32)
    return bits ^ ((bits >> 31) & MAGNITUDE)


def _value(order: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The number that stands at a place of that order."""
    return jax.lax.bitcast_convert_type(order ^ ((order >> 31) & MAGNITUDE), jnp.float32)


def _total(part_BV: Array, axis_name: str | None) -> Array:
    part_B = part_BV.sum(axis=1)
    return jax.lax.psum(part_B, axis_name) if axis_name else part_B


def _highest(part_BV: Array, axis_name: str | None) -> Array:
    part_B = part_BV.max(axis=1)
    return jax.lax.pmax(part_B, axis_name) if axis_name else part_B
