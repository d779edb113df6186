import types

import pytest

from thinkfirst.rl import plan

GIB = 2**30


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


def test_the_policy_chosen_is_the_first_that_fits():
    kept = {"none": 900, "products": 700, "gate": 500, "narrow": 300, "attention": 200, "context": 100, "full": 50}
    tried = []

    def measure(name):
        tried.append(name)
        return program(kept[name], fits=name in ("narrow", "attention", "context", "full"))

    # "full" needs 100 and keeps 50: of 700 there is room for what keeps 636 at most, and "gate" is wrong about that
    name, _ = plan.chosen(measure, kept.__getitem__, 100.0, 700)
    assert (name, tried) == ("narrow", ["gate", "narrow"])
    assert plan.chosen(measure, kept.__getitem__, 2000.0, 700)[0] == "full"


def test_the_compilers_error_says_what_was_asked_for():
    first = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (23.50G)"
    assert plan.asked_bytes(first + " exceeds available HBM (15.75G).") == int(23.5 * GIB)
    second = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded"
    assert plan.asked_bytes(second) == int(17.5 * GIB)
    assert plan.asked_bytes("INVALID_ARGUMENT: (23.50G) exceeds available HBM") is None


def test_another_error_of_the_compiler_is_not_taken_for_too_little_memory():
    def fail():
        raise plan.jax.errors.JaxRuntimeError("INTERNAL: broken")

    roof = plan.chips.ROOFS["v5e"]
    with pytest.raises(ValueError, match="the compiler gave up: INTERNAL: broken"):
        plan._measured(types.SimpleNamespace(compile=fail), roof, resident=0, counted=0)
