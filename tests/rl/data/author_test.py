import numpy as np
import pytest

from thinkfirst.rl.data import author

CHAIN = (author.Step(27, "+", 35), author.Step(author.Result(0), "-", 4))  # 27 + 35 - 4 = 58
PRODUCT = (author.Step(3, "*", 4), author.Step(7, "+", author.Result(0)))  # 7 + 3 * 4 = 19
DIFFERENCE = (author.Step(30, "-", 5), author.Step(author.Result(0), "+", 9))  # 30 - 5 + 9 = 34


def test_truth():
    assert author.evaluate(CHAIN) == [62, 58]
    assert author.evaluate(PRODUCT) == [12, 19]


@pytest.mark.parametrize(
    ("step", "slip"),
    [((27, "+", 35), 52), ((42, "-", 17), 35), ((22, "+", 35), None), ((47, "-", 12), None), ((7, "*", 8), None)],
)
def test_forgotten_carries_and_borrows(step, slip):
    assert author.forgets_carry(*step) == slip


def test_a_slip_carries_on():
    assert author.slipped(CHAIN, np.random.default_rng(0), largest=99) in (
        [(27, "+", 35, 52), (52, "-", 4, 48)],
        [(27, "+", 35, 62), (62, "-", 4, 68)],
    )


def test_steps_in_the_wrong_order():
    assert author.slipped(PRODUCT, np.random.default_rng(0), largest=99) == [(7, "+", 3, 10), (10, "*", 4, 40)]
    assert [(5, "+", 9, 14), (30, "-", 14, 16)] in [
        author.slipped(DIFFERENCE, np.random.default_rng(i), largest=99) for i in range(9)
    ]


def test_a_number_is_misread_where_no_habit_fits():
    [(left, operator, right, value)] = author.slipped((author.Step(21, "+", 35),), np.random.default_rng(0), largest=99)
    assert operator == "+" and value == left + right != 56
    assert (left, right) != (21, 35) and (left == 21 or right == 35)


def test_writing():
    lines = author.equations(CHAIN)
    assert author.write_plain(lines) == "27+35=62. 62-4=58. The answer is 58."
    assert author.write_trace(lines) == (
        "<reasoning>Step 1: 27+35=62.\nStep 2: 62-4=58.</reasoning><answer>58</answer>"
    )


def test_a_slip_does_not_show_by_its_size():
    """3 + 45 = 48 misread: only 3 -> 1, 2, 4 and 45 -> 41 ... 46, 15 ... 35 stay below 50."""
    slips = [author.slipped((author.Step(3, "+", 45),), np.random.default_rng(i), largest=49) for i in range(50)]
    assert all(0 <= value <= 49 for [(*_, value)] in slips)
    assert len({value for [(*_, value)] in slips}) > 5
