import pytest

from thinkfirst.rl.data import choice, rows


@pytest.mark.parametrize(("value", "found"), [(0, 0), (3, 3), ("0", 0), ("A", 0), (" d ", 3), ("2", 2)])
def test_numbers_count_from_zero_and_letters_from_a(value, found):
    assert choice.place(rows.Row("f:1", {"answer": value}, "f"), "answer", 4) == found


@pytest.mark.parametrize("value", [-1, 4, "4", "E", "-1", "", "AB", True, 1.0, None, ["A"]])
def test_everything_else_is_refused(value):
    with pytest.raises(ValueError, match=r"f:1: 'answer' must be a number in 0\.\.3 or a letter in A\.\.D"):
        choice.place(rows.Row("f:1", {"answer": value}, "f"), "answer", 4)
