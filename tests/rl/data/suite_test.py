import collections

from thinkfirst.rl.data import suite
from thinkfirst.rl.rewards import code, constraints, domains
from thinkfirst.rl.sandbox import pool

SOLUTIONS = (
    "def second_largest(numbers):\n    found = sorted(set(numbers))\n    return found[-2] if len(found) > 1 else None",
    "def rle(text):\n    import itertools\n    return [(k, len(list(g))) for k, g in itertools.groupby(text)]",
    "def is_balanced(text):\n    stack = []\n    for c in text:\n        if c in '([':\n            stack.append(c)\n"
    "        elif c in ')]' and (not stack or stack.pop() + c not in ('()', '[]')):\n            return False\n"
    "    return not stack",
)


def test_counts_and_kinds():
    kinds = collections.Counter(domains.kind(problem) for problem in suite.problems())
    assert kinds == {"math": 10, "code": 3, "choice": 2, "open": 5}
    assert len({problem.id for problem in suite.problems()}) == 20


def test_answers_of_the_sums():
    """Worked anew, by another way than the questions tell."""
    worked = (14 + 28, 250 - 135, 84.6 / 3, 205, 80 * 0.85, 7 * 12, 45 * 3 / 5 / 3, sum(range(11, 21)), 75 * 7, 34)
    asked = [problem for problem in suite.problems() if problem.domain == "math"]
    for problem, value in zip(asked, worked, strict=True):
        assert domains.correctness(f"{value:g}", problem) == 1.0, problem.question


def test_programs_can_be_judged():
    asked = [problem for problem in suite.problems() if problem.tests]
    with pool.Sandbox(1) as box:
        right = code.judge(box, [(text, problem.tests) for text, problem in zip(SOLUTIONS, asked, strict=True)])
        wrong = code.judge(box, [(text.replace("-2", "-1").replace("len(", "max(1, 2, "), p.tests)
                                 for text, p in zip(SOLUTIONS[:1], asked[:1], strict=True)])  # fmt: skip
    assert all(verdict.all_passed for verdict in right)
    assert not wrong[0].all_passed


def test_what_the_open_ones_ask_is_read():
    asked = [problem for problem in suite.problems() if problem.domain == "creative"]
    assert [len(list(constraints.read(problem.question))) for problem in asked] == [2, 2, 1, 1]
