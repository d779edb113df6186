"""A problem's hidden tests, parted into what a program is asked and what only the judge knows.

    assert f(2) == [4]                  the program's process gives the value of `f(2)`; `[4]` never enters it
    assert not f(2)                     likewise: the truth of `f(2)`
    assert math.isclose(f(2), 4)        a process beside it runs the test and asks the program for `f(2)` as plain data
    def check(candidate): ...           likewise
    import math; root = Node(1)         no assert and no raise: setup, run after the program

MBPP (Austin et al., arXiv 2108.07732) is of the first form but for a few; HumanEval (Chen et al., arXiv 2107.03374)
of the third.  Equality is Python's, as the tests' authors meant it: 4.0 passes for 4.
"""

import ast
import builtins
import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class HiddenTests:
    """`calls` with the value `expected` of each, and `checks`, which call `names` and use `modules`."""

    setup: tuple[str, ...]
    calls: tuple[str, ...]
    expected: tuple[Any, ...]
    checks: tuple[str, ...]
    names: tuple[str, ...]
    modules: tuple[str, ...]

    @property
    def total(self) -> int:
        return len(self.calls) + len(self.checks)


@functools.lru_cache(maxsize=4096)  # the samples of a group share their tests
def parse(tests: tuple[str, ...]) -> HiddenTests:
    """The parts of `tests`, each a piece of Python; ValueError where there is none, or one that tests nothing."""
    sources = [source for test in tests for source in _separate(test)]
    setup = [source for source in sources if not _asserts(_tree(source))]
    bound = _bound(setup)
    calls, expected, checks = [], [], []
    for source in sources:
        tree = _tree(source)
        asked = _literal_comparison(tree, bound) or _truth(tree, bound)
        if asked is not None:
            calls.append(asked[0])
            expected.append(asked[1])
        elif _asserts(tree):
            checks.append(source)
    if not calls and not checks:
        raise ValueError(f"hidden tests: none of these asserts anything: {tests!r}")
    modules, names = _free_names(setup, checks)
    return HiddenTests(tuple(setup), tuple(calls), tuple(expected), tuple(checks), names, modules)


def humaneval(prompt: str, test: str, entry_point: str) -> tuple[str, ...]:
    """The test of a HumanEval row.  What the prompt defines beside the entry point belongs to the test, not to the
    program: the checks of three problems call it, and a program could define it anew."""
    given = [node for node in _tree(prompt).body if getattr(node, "name", "") != entry_point]
    return ("\n".join([*map(ast.unparse, given), test, f"check({entry_point})"]),)


def _separate(test: str) -> list[str]:
    """One source for each assert where a test is nothing but asserts."""
    statements = _tree(test).body
    if statements and all(isinstance(statement, ast.Assert) for statement in statements):
        return [ast.unparse(statement) for statement in statements]
    return [test]


def _tree(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(f"hidden tests: not Python: {source!r}") from error


def _literal_comparison(tree: ast.Module, bound: frozenset[str]) -> tuple[str, Any] | None:
    """The expression and the value that one `assert expression == literal` compares, whichever stands first.

    Not where the value is a truth that somebody else than the program tells, as in `near(f(2), 4) == True`: in the
    program's process it would be the program's to forge.
    """
    test = _sole_assert(tree)
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return None
    left, right = test.left, test.comparators[0]
    for asked, known in ((left, right), (right, left)):
        try:
            value = ast.literal_eval(known)
        except (ValueError, TypeError):
            continue
        return None if isinstance(value, bool) and not _calls_program(asked, bound) else (ast.unparse(asked), value)
    return None


def _truth(tree: ast.Module, bound: frozenset[str]) -> tuple[str, bool] | None:
    """The truth that one `assert f(x)` or `assert not f(x)` wants of a function of the program."""
    test = _sole_assert(tree)
    wanted = True
    while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, wanted = test.operand, not wanted
    return (f"not not {ast.unparse(test)}", wanted) if test and _calls_program(test, bound) else None


def _calls_program(node: ast.expr, bound: frozenset[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in bound


def _sole_assert(tree: ast.Module) -> ast.expr | None:
    return tree.body[0].test if len(tree.body) == 1 and isinstance(tree.body[0], ast.Assert) else None


def _asserts(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.Assert | ast.Raise) for node in ast.walk(tree))


def _free_names(setup: list[str], checks: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Modules and functions that the checks use and define nowhere: the standard library's and the program's."""
    nodes = [node for source in (*setup, *checks) for node in ast.walk(_tree(source))]
    loaded = [node for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    free = {node.id for node in loaded} - _bound([*setup, *checks])
    owners = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    alone = {node.id for node in loaded if id(node) not in owners}
    modules = {name for name in free if name in sys.stdlib_module_names and name not in alone}
    if checks and not free - modules:
        raise ValueError(f"hidden tests: nothing of the program is called: {checks!r}")
    return tuple(sorted(modules)), tuple(sorted(free - modules))


def _bound(sources: list[str]) -> frozenset[str]:
    """Names that mean something without the program."""
    nodes = (node for source in sources for node in ast.walk(_tree(source)))
    return frozenset(name for node in nodes for name in _bound_by(node)) | frozenset(dir(builtins))


def _bound_by(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.alias):
        yield (node.asname or node.name).partition(".")[0]
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name
