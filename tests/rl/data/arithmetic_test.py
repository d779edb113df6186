import re

import numpy as np
import pytest

from thinkfirst.rl.data import arithmetic, author

NUMBER_OF_STEPS = {"easy": {1}, "medium": {2, 3}, "hard": {2, 3}}


@pytest.mark.parametrize("difficulty", arithmetic.DIFFICULTIES)
def test_answers_are_right_and_steps_fit_the_difficulty(difficulty):
    for index in range(200):
        worked = arithmetic.worked(0, index, difficulty)
        results = author.evaluate(worked.steps)
        assert worked.problem.answer == str(results[-1])
        assert all(0 <= value <= arithmetic.LARGEST for value in results)
        assert len(worked.steps) in NUMBER_OF_STEPS[difficulty]


def test_symbols_mean_what_python_means():
    """`What is 7 + 3 * 4?` with the usual precedence."""
    seen = 0
    for index in range(300):
        problem = arithmetic.problem(1, index, "medium" if index % 2 else "easy")
        if match := re.fullmatch(r"What is ([0-9+\-* ]+)\?", problem.question):
            assert eval(match[1]) == int(problem.answer)
            seen += 1
    assert seen > 50


def test_words_hold_every_number_that_is_needed():
    for index in range(100):
        worked = arithmetic.worked(2, index, "hard")
        told = [int(number) for number in re.findall(r"\d+", worked.problem.question)]
        needed = [side for step in worked.steps for side in (step.left, step.right) if isinstance(side, int)]
        assert all(number in told for number in needed)
        assert len(told) == len(needed) + 1  # and the one that does not matter


def test_a_problem_is_a_function_of_seed_and_index():
    assert arithmetic.problem(3, 7, "hard") == arithmetic.problem(3, 7, "hard")
    assert arithmetic.problem(3, 7, "hard") != arithmetic.problem(4, 7, "hard")


def test_training_and_held_out_share_no_question():
    train = {arithmetic.problem(0, index, level).question for level in arithmetic.DIFFICULTIES for index in range(300)}
    held_out = {problem.question for problem in arithmetic.held_out(0, 40)}
    assert len(held_out) == 120
    assert not train & held_out
    assert all(arithmetic.is_held_out(question) for question in held_out)


def test_held_out_share():
    shares = [arithmetic.is_held_out(f"question {i}") for i in range(4000)]
    assert abs(np.mean(shares) - arithmetic.HELD_OUT_SHARE) < 0.02
