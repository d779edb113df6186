import pytest

import tolerance
from thinkfirst.rl import curriculum

PHASES = (
    curriculum.Phase("easy", until=60, difficulties=("easy",)),
    curriculum.Phase("medium", until=140, difficulties=("medium",)),
    curriculum.Phase("mixed", until=0, difficulties=("hard", "easy")),
)


@pytest.mark.parametrize(
    ("step", "name"), [(1, "easy"), (60, "easy"), (61, "medium"), (140, "medium"), (141, "mixed"), (9999, "mixed")]
)
def test_phases_of_show_work(step, name):
    assert curriculum.phase_at(PHASES, step).name == name


def test_the_last_phase_goes_on():
    assert curriculum.phase_at(PHASES[:1], 500).name == "easy"


def test_difficulties_take_turns():
    assert [curriculum.difficulty_at(PHASES[2], index) for index in range(3)] == ["hard", "easy", "hard"]


@pytest.mark.parametrize("prompts", [1, 3, 4])
def test_a_problem_knows_its_place_in_the_line_of_its_difficulty(prompts):
    """Counted one by one over phases that share difficulties, that are cut at odd places, and of which one is empty."""
    phases = (
        curriculum.Phase("a", until=3, difficulties=("easy", "hard", "easy")),
        curriculum.Phase("b", until=5, difficulties=("medium", "easy")),
        curriculum.Phase("never", until=4, difficulties=("hard",)),
        curriculum.Phase("c", until=8, difficulties=("hard", "medium", "easy", "hard", "easy")),
    )
    seen = {"easy": 0, "medium": 0, "hard": 0}
    for index in range(12 * prompts):
        difficulty = curriculum.difficulty_at(curriculum.phase_at(phases, index // prompts + 1), index)
        assert curriculum.turn(phases, prompts, index) == seen[difficulty]
        seen[difficulty] += 1


@pytest.mark.parametrize(("step", "value"), [(1, 0.45), (51, 0.35), (101, 0.25), (500, 0.25)])
def test_annealing_is_a_straight_line(step, value):
    tolerance.assert_close(curriculum.value_at(curriculum.Anneal(0.45, 0.25, over=101), step), value)


def test_no_phases_are_refused():
    with pytest.raises(ValueError, match="at least one phase"):
        curriculum.phase_at((), 1)
