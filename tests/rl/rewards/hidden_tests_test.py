"""What a program is asked, what only the judge knows, and what a process beside the program runs."""

import pytest

from thinkfirst.rl.rewards import hidden_tests


def parse(*tests):
    return hidden_tests.parse(tests)


@pytest.mark.parametrize(
    "test, call, expected",
    [
        ("assert f(2) == 4", "f(2)", 4),
        ("assert 4 == f(2)", "f(2)", 4),
        ("assert (f(2)) == ([1, (2, {3})]), 'a message'", "f(2)", [1, (2, {3})]),
        ("assert f(g(2), k='==')[0] == -1.5", "f(g(2), k='==')[0]", -1.5),
        ("assert f(2) == None", "f(2)", None),
        ("assert f(2) == True", "f(2)", True),
        ("assert set(f(2)) == {1, 2}", "set(f(2))", {1, 2}),
        ("assert f(2)", "not not f(2)", True),
        ("assert not f(2)", "not not f(2)", False),
        ("assert not not f(2)", "not not f(2)", True),
    ],
)
def test_the_expected_value_stays_outside(test, call, expected):
    tests = parse(test)
    assert (tests.calls, tests.expected, tests.checks) == ((call,), (expected,), ())
    assert tests.total == 1


@pytest.mark.parametrize(
    "test",
    [
        "assert math.isclose(f(2), 4.0, rel_tol=0.001)",
        "assert set(f(2)) == set((1, 2))",
        "assert isinstance(f(2), int)",
        "assert isinstance(f(2), int) == True",
        "assert True == math.isclose(f(2), 4.0)",
        "assert f(2) == 4 and f(3) == 9",
        "assert 1 < f(2) == 4",
        "assert f(2) != 4",
        "assert f(2) is True",
        "for x in range(3):\n    assert f(x) == x * x",
        "def check(candidate):\n    assert candidate(2) == 4\ncheck(f)",
        "if f(2) != 4:\n    raise ValueError",
    ],
)
def test_other_tests_run_beside_the_program(test):
    tests = parse(test)
    assert (tests.calls, tests.expected, tests.checks, tests.names) == ((), (), (test,), ("f",))
    assert tests.modules == (("math",) if "math" in test else ())


def test_a_judge_of_the_tests_is_not_asked_of_the_program():
    for name in ("from math import isclose", "def isclose(a, b): return abs(a - b) < 1"):
        tests = parse(name, "assert isclose(f(2), 4)", "assert f(1)")
        assert tests.setup == (name,)
        assert tests.checks == ("assert isclose(f(2), 4)",)
        assert tests.names == ("f",)
        assert tests.calls == ("not not f(1)",)


def test_asserts_side_by_side_are_tests_of_their_own():
    tests = parse("assert f(1) == 1\nassert f(2) == 4\nassert abs(f(3) - 9) < 1", "root = f(0)\n")
    assert tests.calls == ("f(1)", "f(2)")
    assert tests.checks == ("assert abs(f(3) - 9) < 1",)
    assert tests.setup == ("root = f(0)\n",)
    assert tests.total == 3


def test_names_are_the_programs_when_nobody_else_defines_them():
    body = "    k = [h(x) for x in a]\n    assert g(copy.copy(k)) == sys.maxsize\n"
    tests = parse(f"import copy\ndef check(g, *a):\n{body}check(f, 1)")
    assert (tests.names, tests.modules) == (("f", "h"), ("sys",))


@pytest.mark.parametrize("tests", [(), ("x = 1",), ("assert f(",), ("assert 1 == sum([1])\nx = 2",), ("\0",)])
def test_tests_that_test_nothing_are_refused(tests):
    with pytest.raises(ValueError, match="hidden tests: "):
        parse(*tests)


def test_what_a_humaneval_prompt_gives_is_not_the_programs():
    prompt = 'import math\ndef poly(xs, x):\n    return sum(xs)\n\n\ndef root(xs):\n    """Find it."""\n'
    check = "def check(candidate):\n    assert poly([1], candidate([1])) == 1\n"
    (test,) = hidden_tests.humaneval(prompt, check, "root")
    tests = parse(test)
    assert tests.names == ("root",) and tests.total == 1
    assert "import math" in test and test.endswith("check(root)")
    assert "Find it" not in test
