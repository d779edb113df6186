import numpy as np
import pytest

from thinkfirst.rl import batch, packing


def pairs(*lengths):
    """A prompt of one token with a completion for the rest of so many tokens; the tokens count on."""
    found, begin = [], 1
    for length in lengths:
        tokens, begin = list(range(begin, begin + length)), begin + length
        found.append((tokens[:1], tokens[1:]))
    return found


def packed(*lengths, row_tokens=10, num_shards=1, micro_batches=1):
    return packing.packed(pairs(*lengths), row_tokens=row_tokens, num_shards=num_shards, micro_batches=micro_batches)


def test_the_fullest_row_with_room_takes_the_next():
    """By length 7 6 4 3: 7; 6 in a row of its own; 4 fills it up; 3 fills up the first."""
    plan = packed(4, 7, 3, 6)
    assert plan.rows == ((1, 2), (0, 3))
    assert plan.waste(pairs(4, 7, 3, 6)) == 0
    assert plan.room == 8  # of completion tokens: 6 + 2 and 3 + 5


def test_equal_lengths_fill_rows_in_order_of_their_numbers():
    assert packed(5, 5, 5, 5).rows == ((0, 1), (2, 3))


def test_every_sample_stands_in_one_row_and_no_row_is_too_long():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 33, 200).tolist()
    plan = packed(*lengths, row_tokens=32, num_shards=4, micro_batches=2)
    assert sorted(number for row in plan.rows for number in row) == list(range(200))
    assert max(sum(lengths[number] for number in row) for row in plan.rows) <= 32
    fewest = -(-sum(lengths) // 32)
    assert len(plan.rows) % 8 == 0 and fewest <= len(plan.rows) <= fewest + 200 // 8 + 8
    assert plan == packed(*lengths, row_tokens=32, num_shards=4, micro_batches=2)


def test_shards_and_micro_batches_have_like_loads():
    """Part m of shard s: of its own rows every second one, as `update.cut` takes them."""
    lengths = np.random.default_rng(1).integers(1, 33, 120).tolist()
    plan = packed(*lengths, row_tokens=32, num_shards=4, micro_batches=2)
    loads = [sum(lengths[number] for number in row) for row in plan.rows]
    each = np.array(loads).reshape(4, -1, 2).sum(axis=1)
    assert each.max() - each.min() <= 32


def test_few_sizes_are_compiled():
    """Of 1 to 64 samples that fill half a row or a whole one, whatever the number of either."""
    for parts in (1, 4, 16):
        plans = [packed(*[5] * half, *[10] * (64 - half), micro_batches=parts) for half in range(65)]
        assert len({len(plan.rows) for plan in plans}) <= packing.SIZES
        assert all(len(plan.rows) % parts == 0 for plan in plans)
        assert len({plan.room for plan in plans}) <= packing.SIZES


def test_samples_without_tokens_are_in_no_row_and_there_is_always_a_row():
    nothing = ([], [])
    plan = packing.packed([nothing, *pairs(3), nothing], row_tokens=4, num_shards=2, micro_batches=1)
    assert plan.rows == ((1,), ())
    assert packing.packed([], row_tokens=4, num_shards=2, micro_batches=3).rows == ((),) * 6


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="a sample of 11 tokens does not fit in a row of 10"):
        packed(3, 11)


def test_rows_hold_prompt_and_completion_of_one_sample_after_the_other():
    rows = packing.lay_out([([5, 6], [1]), ([7], [2, 3]), ([8, 9], [])], packing.Plan(((0, 1), (2,), ()), 7, 4))
    assert rows.tokens_BT.tolist() == [[5, 6, 1, 7, 2, 3, 0], [8, 9, 0, 0, 0, 0, 0], [0] * 7]
    assert rows.segment_BT.tolist() == [[1, 1, 1, 2, 2, 2, 0], [3, 3, 0, 0, 0, 0, 0], [0] * 7]
    assert rows.column_BT.tolist() == [[2, 4, 5, 0], [0] * 4, [0] * 4]


def test_what_does_not_fit_in_the_plan_is_refused():
    for plan in (packing.Plan(((0,),), 4, 4), packing.Plan(((0,),), 5, 2)):
        with pytest.raises(ValueError, match="sample 0: 2 tokens of prompt and 3 of completion exceed"):
            packing.lay_out([([5, 6], [1, 2, 3])], plan)


def test_what_is_known_of_tokens_stands_beside_their_columns():
    values = lambda *x: np.array(x, np.float32)  # noqa: E731
    samples = [
        batch.Sample([5, 6], np.array([1]), values(-1), values(-9), 0.5),
        batch.Sample([7], np.array([2, 3]), values(-2, -3), values(-8, -7), -1.0),
    ]
    plan = packing.Plan(((), (0, 1)), 6, 4)
    known = packing.experience(samples, plan)
    assert known.old_logp_BT.tolist() == [[0] * 4, [-1, -2, -3, 0]]
    assert known.advantage_BT.tolist() == [[0] * 4, [0.5, -1, -1, 0]]
    assert known.floor_BT.tolist() == [[-np.inf] * 4, [-9, -8, -7, -np.inf]]
    assert packing.experience(samples, plan, truncated=False).floor_BT is None


def test_packing_is_asked_for_and_its_padding_told():
    found = pairs(4, 7, 3, 6)
    unpacked = packing.one_a_row(4, row_tokens=8, room=7)
    asked = {"num_shards": 1, "micro_batches": 1}
    plan, padding = packing.planned(found, unpacked, row_tokens=0, **asked)
    assert plan is unpacked and padding["learner/rows"] == 4
    assert padding["learner/padding_waste"] == padding["learner/padding_waste_unpacked"] == 1 - 20 / 32
    plan, padding = packing.planned(found, unpacked, row_tokens=10, **asked)
    assert padding == {
        "learner/rows": 2,
        "learner/padding_waste": 0,
        "learner/padding_waste_unpacked": 1 - 20 / 32,
    }
