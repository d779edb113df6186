"""The small world's problems: graded full marks as its author writes them, and less with a slip."""

import pytest

from thinkfirst.launch import show_work
from thinkfirst.models import tokenizer
from thinkfirst.rl import batch
from thinkfirst.rl.data import arithmetic, small_world, source
from thinkfirst.rl.rewards import code, think_first
from thinkfirst.rl.sandbox import pool

COUNT = 60


def rows(domain, *, slips=False):
    levels = arithmetic.DIFFICULTIES
    return [small_world.worked(5, i, domain, levels[i % 3], slips=slips) for i in range(COUNT)]


@pytest.fixture(scope="module")
def judge():
    with pool.Sandbox(2) as box:
        yield code.Judge(box)


def grade(row, judge):
    completion = batch.Completion(row.completion, (), ())
    return think_first.grade(completion, row.problem, think_first.Weights(), think_first.Judges(code=judge))


@pytest.mark.parametrize("domain", small_world.DOMAINS)
def test_what_the_author_writes_earns_all_there_is(domain, judge):
    for row in rows(domain):
        found = grade(row, judge)
        assert found.parts["format"] == 1, row.completion
        assert found.parts.get("rubric", found.parts["correctness"]) == 1, (row.problem, row.completion)


@pytest.mark.parametrize("domain", small_world.CHECKED)
def test_a_slip_makes_the_answer_wrong_and_not_the_form(domain, judge):
    for row in rows(domain, slips=True):
        found = grade(row, judge)
        assert found.parts["format"] == 1, row.completion
        assert found.parts["correctness"] < 1, (row.problem, row.completion)


def test_no_question_is_on_both_sides():
    held_out = small_world.held_out(16)
    assert [problem.domain for problem in held_out[::16]] == list(small_world.DOMAINS)
    assert len({problem.question for problem in held_out}) == 96
    trained = {row.problem.question for domain in small_world.DOMAINS for row in rows(domain)}
    assert not trained & {problem.question for problem in held_out}


def test_more_held_out_problems_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"the domain code has [0-9]+ held-out problems, not 60"):
        small_world.held_out(60, ("code",))


def test_items_are_functions_of_seed_and_index():
    line = source.make(source.DataConfig(kind="small_world"), 3)
    again = source.make(source.DataConfig(kind="small_world"), 3)
    other = source.make(source.DataConfig(kind="small_world"), 4)
    assert [line.demonstration(i) for i in (9, 2)] == [again.demonstration(i) for i in (9, 2)]
    assert line.problem(7, "hard") == again.problem(7, "hard") != other.problem(7, "hard")
    assert [line.problem(i, "easy").domain for i in range(5)] == ["math", "knowledge", "code", "span", "math"]
    assert line.runs_code
    taught = source.make(source.DataConfig(kind="small_world_open"), 3)
    assert [taught.demonstration(i).problem.domain for i in range(3)] == ["creative", "summary", "creative"]


def test_the_share_of_slips_is_what_was_asked_for(judge):
    line = source.make(source.DataConfig(kind="small_world", slip_share=0.4), 0)
    right = [grade(line.demonstration(i), judge).parts["correctness"] == 1 for i in range(300)]
    assert 0.52 < sum(right) / 300 < 0.68


def test_every_row_fits_the_tiny_recipe():
    words = tokenizer.Tokenizer(show_work.DEMO_BASE)
    for domain in small_world.DOMAINS:
        for row in rows(domain):
            prompt, said = words.prompt(row.problem.question), words.completion(row.completion)
            assert len(prompt) <= 64 and len(said) <= 208 and len(prompt) + len(said) <= 256
