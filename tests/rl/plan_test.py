import pytest

from thinkfirst.rl import plan


def program(peak, *, fits):
    return plan.Program(0, 0, peak, 0, fits, 0, 0, 0, 0.0)


def machine(size, base, slope, tried):
    """A compiler whose programs take base + rows * slope bytes."""

    def measure(rows):
        tried.append(rows)
        peak = base + rows * slope + (rows % 3)  # never quite a straight line
        return program(peak, fits=peak <= size)

    return measure


@pytest.mark.parametrize(
    ("base", "slope", "most"), [(100, 90, 9), (0, 100, 9), (500, 20, 24), (50, 450, 2), (100, 10, 89)]
)
def test_the_largest_micro_batch_is_found_in_a_few_tries(base, slope, most):
    tried = []
    found, line = plan.largest(machine(1000, base, slope, tried), 1000)
    assert found == most
    assert len(tried) <= 6
    assert line.slope == pytest.approx(slope, rel=0.05)


def test_the_search_ends_where_more_rows_are_of_no_use():
    assert plan.largest(machine(10**9, 100, 1, []), 10**9)[0] == plan.MOST_ROWS


def test_no_micro_batch_fits_where_not_even_the_smallest_does():
    found, _ = plan.largest(machine(1000, 990, 20, []), 1000)
    assert found == 0
