"""The real files: every count, and 25 problems of each set as they were read by eye against their questions."""

import re

import pytest

from thinkfirst.rl.data import mix

COUNTS = [
    ("gsm8k", "gsm8k/train.jsonl", 7473),
    ("gsm8k", "gsm8k/test.jsonl", 1319),
    ("svamp", "svamp/SVAMP.json", 1000),
    ("mbpp", "mbpp/mbpp.jsonl", 974),
    ("mbpp", "mbpp/mbpp.jsonl#prompt", 10),
    ("mbpp", "mbpp/mbpp.jsonl#test", 500),
    ("mbpp", "mbpp/mbpp.jsonl#validation", 90),
    ("mbpp", "mbpp/mbpp.jsonl#train", 374),
    ("mbpp", "mbpp/sanitized-mbpp.json", 427),
    ("mbpp", "mbpp/sanitized-mbpp.json#train", 120),
    ("mbpp", "mbpp/sanitized-mbpp.json#test", 257),
    ("humaneval", "humaneval/HumanEval.jsonl.gz", 164),
    ("mmlu", "mmlu/dev", 57 * 5),
    ("mmlu", "mmlu/test", 1588),
    ("mmlu", "mmlu/test/abstract_algebra_test.csv", 100),
    ("mmlu", "mmlu/mmlu_stem_test.jsonl", 3018),
]


@pytest.mark.parametrize(("kind", "path", "count"), COUNTS)
def test_counts(data_dir, kind, path, count):
    assert len(mix.READERS[kind](f"{data_dir}/{path}")) == count


def sample(data_dir, kind, path):
    """25 problems, evenly spread."""
    problems = [row.problem for row in mix.READERS[kind](f"{data_dir}/{path}")]
    return problems[:: len(problems) // 25][:25]


ANSWERS = [
    ("gsm8k", "gsm8k/train.jsonl",
     "72 22 3240 7 20 3 100 183 7 18 30 35 150 640 50 1020 30 3400 4000 2 66 900000 40 16 57"),
    ("gsm8k", "gsm8k/test.jsonl",
     "18 15 500 1400 76 11 32 49 56 120 63 100 85 240 40 25 42 50 250 6 736 1080 34 75 750"),
    ("svamp", "svamp/SVAMP.json", "51 10 24 3 16 83 20 211 9 7 8 141 25740 1541 16 2 2 105 51 345 5 5 3 7 92"),
    ("mmlu", "mmlu/test", "B B D C B D B B A C D A B A A C D B A D C D B C C"),
    ("mmlu", "mmlu/dev", "B A B D B A D B A C A D D B B A D C D C C A B D C"),
    ("mmlu", "mmlu/mmlu_stem_test.jsonl", "C C D D B D D A C C A A D C A B B A C A D B A A A"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "path", "answers"), ANSWERS)
def test_answers_of_25(data_dir, kind, path, answers):
    assert [problem.answer for problem in sample(data_dir, kind, path)] == answers.split()


FUNCTIONS = [
    ("mbpp", "mbpp/mbpp.jsonl",
     "min_cost rearange_string is_Diff empty_dit parabola_vertex check_monthnumber re_arrange_array square_Sum "
     "start_withp dig_let index_on_inner_list round_and_sum Find_Min remove_lowercase remove_datatype "
     "max_sum_pair_diff_lessthan_K floor_Min split_upperstring sum_Of_Primes count_same_pair arc_length left_Rotate "
     "cube_Sum min_difference end_num"),
    ("mbpp", "mbpp/sanitized-mbpp.json",
     "similar_elements opposite_Signs word_len frequency_lists string_to_list circle_circumference count_occurance "
     "count_charac split_two_parts all_unique dict_depth first_non_repeating_character overlapping check_greater "
     "remove_whitespaces find_remainder extract_values catalan_number is_Even largest_subset remove_parenthesis "
     "toggle_middle_bits jacobsthal_num check_expression even_position"),
    ("humaneval", "humaneval/HumanEval.jsonl.gz",
     "has_close_elements parse_nested_parens longest how_many_times largest_divisor get_positive fizz_buzz incr_list "
     "is_palindrome same_chars sum_to_n digitSum will_it_fly hex_key solve next_smallest count_up_to choose_num "
     "count_nums minSubArraySum maximum is_sorted is_nested is_equal_to_sum_even simplify"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "path", "functions"), FUNCTIONS)
def test_functions_of_25_are_asked_for_and_tested(data_dir, kind, path, functions):
    for problem, name in zip(sample(data_dir, kind, path), functions.split(), strict=True):
        assert re.search(rf"\b{name}\b", problem.question)
        tests = [test for test in problem.tests if "assert" in test]
        assert tests and all(re.search(rf"\b{name}\b", test) for test in tests)
        for test in problem.tests:
            compile(test, name, "exec")


def test_helpers_of_a_prompt_come_with_its_test(data_dir):
    """HumanEval/38 is checked with the encoder that its prompt defines."""
    problem = mix.READERS["humaneval"](f"{data_dir}/humaneval/HumanEval.jsonl.gz")[38].problem
    solution = "def decode_cyclic(s):\n    return encode_cyclic(encode_cyclic(s))\n"
    exec(f"{solution}\n{problem.tests[0]}", {})
    with pytest.raises(AssertionError):
        exec(f"{solution.replace('encode_cyclic(encode_cyclic(s))', 's')}\n{problem.tests[0]}", {})


def test_set_up_code_comes_before_the_asserts(data_dir):
    problems = [row.problem for row in mix.READERS["mbpp"](f"{data_dir}/mbpp/mbpp.jsonl")]
    tree = [problem for problem in problems if "Node(" in problem.tests[0]]
    assert len(tree) == 2
    for problem in tree:
        setup, *asserts = problem.tests
        assert setup.startswith("root = Node(1)") and "\r" not in setup
        assert len(asserts) == 3 and all(test.startswith("assert") for test in asserts)


def test_domains_and_difficulties_of_mmlu(data_dir):
    problems = [row.problem for row in mix.READERS["mmlu"](f"{data_dir}/mmlu/test")]
    count = lambda domain, difficulty: sum((p.domain, p.difficulty) == (domain, difficulty) for p in problems)  # noqa: E731
    assert count("science", "easy") == 378  # elementary mathematics
    assert count("science", "hard") == 200  # abstract algebra and college mathematics
    assert sum(problem.domain == "knowledge" for problem in problems) == 126 + 100 + 163 + 100


def test_a_mix_of_the_real_sets_has_exact_counts(data_dir):
    parts = (
        mix.Part("gsm8k", "gsm8k", f"{data_dir}/gsm8k/train.jsonl", 400, f"{data_dir}/gsm8k/test.jsonl", 50),
        mix.Part("svamp", "svamp", f"{data_dir}/svamp/SVAMP.json", 100, held_out=20),
        mix.Part("mbpp", "mbpp", f"{data_dir}/mbpp/mbpp.jsonl#train", 60, f"{data_dir}/mbpp/mbpp.jsonl#test", 30),
        mix.Part("mmlu", "mmlu", f"{data_dir}/mmlu/dev", 200, f"{data_dir}/mmlu/test", 40),
        mix.Part("humaneval", "humaneval", eval=f"{data_dir}/humaneval/HumanEval.jsonl.gz", held_out=10),
    )
    found = mix.Mix(parts, seed=3)
    epoch = [found.problem(index, mix.ANY) for index in range(760)]
    assert len({problem.id for problem in epoch}) == 760
    assert sum(problem.domain == "math" for problem in epoch) == 500
    assert sum(problem.domain == "code" for problem in epoch) == 60
    assert sum(bool(problem.choices) for problem in epoch) == 200
    assert len(found.held_out()) == 150
    assert epoch == [mix.Mix(parts, seed=3).problem(index, mix.ANY) for index in range(3)] + epoch[3:]
