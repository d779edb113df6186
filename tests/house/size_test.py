"""Files and functions stay readable, names mean something, errors are not swallowed."""

import ast
import re

from house import source

MODULE_LINES = 400
FUNCTION_LINES = 120
EMPTY_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|managers?|misc|lib|v\d+)(_|$)")
# Model-written code may raise anything at all, SystemExit included; its worker reports that as data.
MAY_CATCH_ALL = ("rl/sandbox/",)


def too_long(module: source.Module) -> list[str]:
    found = []
    lines = len(module.text.splitlines())
    if lines > MODULE_LINES:
        found.append(f"{module.path}: {lines} lines, at most {MODULE_LINES}")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_LINES:
                found.append(module.at(node, f"{node.name}: {length} lines, at most {FUNCTION_LINES}"))
    return found


def empty_names(module: source.Module) -> list[str]:
    """File and folder names that say nothing of what is inside."""
    parts = module.path.removesuffix(".py").split("/")
    return [f"{module.path}: a name says what, not how" for part in parts if EMPTY_NAMES.search(part)]


def not_ascii(module: source.Module) -> list[str]:
    return [
        f"{module.path}:{number}: not ASCII: {line.strip()[:60]!a}"
        for number, line in enumerate(module.text.splitlines(), start=1)
        if not line.isascii()
    ]


def swallowed(module: source.Module) -> list[str]:
    """Handlers that catch everything and do not raise it again."""
    if module.path.startswith(MAY_CATCH_ALL):
        return []
    found = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        everything = [error for error in caught if error is None or _name(error) in ("Exception", "BaseException")]
        last = node.body[-1]
        if everything and not (isinstance(last, ast.Raise) and last.exc is None):
            found.append(module.at(node, "catches everything: name the error"))
    return found


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def test_modules_and_functions_are_short():
    source.expect_none(finding for module in source.modules() for finding in too_long(module))


def test_a_long_module_or_function_is_found():
    assert too_long(source.planted("rl/a.py", "x = 1\n" * (MODULE_LINES + 1)))
    assert too_long(source.planted("rl/a.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES))
    assert not too_long(source.planted("rl/a.py", "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1)))


def test_file_names_say_something():
    source.expect_none(finding for module in (*source.modules(), *source.tests()) for finding in empty_names(module))


def test_an_empty_name_is_found():
    for path in ("rl/utils", "rl/helper", "core/common/a", "rl/run_manager", "rl/loss_lib", "rl/loss_v2"):
        assert empty_names(source.planted(f"{path}.py", "")), path
    assert not empty_names(source.planted("rl/library.py", ""))


def test_source_is_ascii():
    source.expect_none(finding for module in (*source.modules(), *source.tests()) for finding in not_ascii(module))
    assert not_ascii(source.planted("rl/a.py", "x = '\N{LATIN SMALL LETTER E WITH ACUTE}'"))


def test_errors_are_not_swallowed():
    source.expect_none(finding for module in source.modules() for finding in swallowed(module))


def test_a_swallowed_error_is_found():
    def count(handler, path="rl/a.py"):
        return len(swallowed(source.planted(path, f"try:\n    f()\n{handler}")))

    assert count("except Exception:\n    pass") == 1
    assert count("except:\n    pass") == 1
    assert count("except (ValueError, Exception) as error:\n    print(error)") == 1
    assert count("except BaseException:\n    clean()\n    raise") == 0
    assert count("except ValueError:\n    pass") == 0
    assert count("except BaseException:\n    pass", path="rl/sandbox/worker.py") == 0
