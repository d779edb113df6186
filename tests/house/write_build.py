"""BUILD as the tree says it should be.  `make build-file` writes it; build_test.py compares."""

import ast

from house import source

HEADER = '''"""Bazel targets: one library per layer, a binary per program, a test per test file.

Written by `make build-file`; tests/house/build_test.py keeps it in step with the tree.
Third-party packages come from the `python3` on the PATH (MODULE.bazel).
"""

load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")

package(default_visibility = ["//visibility:public"])

# The folders of this repository are the packages of `thinkfirst`.
genrule(
    name = "thinkfirst_init",
    outs = ["thinkfirst/__init__.py"],
    cmd = "echo 'import os; __path__ = [os.path.dirname(os.path.dirname(__file__))]' > $@",
)

py_library(
    name = "thinkfirst",
    srcs = ["thinkfirst/__init__.py"],
    imports = ["."],
)
'''

TESTS_HEADER = """# Every test file runs under pytest.  tests/house is left to make: it reads the whole checkout.
py_library(
    name = "testing",
    testonly = True,
    srcs = [
        "tests/conftest.py",
        "tests/tolerance.py",
    ],
    data = {data},
)
"""

TESTS = """[
    py_test(
        name = test[len("tests/"):-len(".py")].replace("/", "_"),
        srcs = [
            test,
            "tests/run_one.py",
        ],
        args = [test],
        data = {data},
        main = "tests/run_one.py",
        deps = [
            ":{layer}",
            ":testing",
        ],
    )
    for test in {tests}
]
"""


def listed(entries: list[str], *, indent: str) -> str:
    """A list as buildifier lays it out: one entry on the line, several on a line each."""
    if len(entries) < 2:
        return "[" + "".join(f'"{entry}"' for entry in entries) + "]"
    return "\n".join(["[", *(f'{indent}    "{entry}",' for entry in entries), f"{indent}]"])


def rule(kind: str, name: str, **lists: list[str]) -> str:
    lines = [f"    {key} = {listed(entries, indent='    ')}," for key, entries in lists.items() if entries]
    return "\n".join([f"{kind}(", f'    name = "{name}",', *lines, ")\n"])


def is_program(module: source.Module) -> bool:
    """A module of launch/ that defines `cli`."""
    functions = (node.name for node in module.tree.body if isinstance(node, ast.FunctionDef))
    return module.layer == "launch" and "cli" in functions


def render(modules: tuple[source.Module, ...], tests: tuple[source.Module, ...]) -> str:
    """The text of BUILD."""
    targets = [HEADER]
    below = [":thinkfirst"]
    for layer in source.LAYERS:
        files = [module.path for module in modules if module.layer == layer]
        targets.append(rule("py_library", layer, srcs=files, data=source.data(layer), deps=sorted(below)))
        below.append(f":{layer}")
    for program in filter(is_program, modules):
        targets.append(rule("py_binary", program.name.rpartition(".")[2], srcs=[program.path], deps=[":launch"]))
    shared = ["pyproject.toml", *source.data("tests/golden")]
    targets.append(TESTS_HEADER.format(data=listed(shared, indent=" " * 4)))
    paths = [test.path for test in tests if test.path.endswith("_test.py")]
    for folder in sorted({path.split("/")[1] for path in paths} - {"house"}):
        layer = folder if folder in source.LAYERS else source.LAYERS[-1]
        chosen = [path for path in paths if path.startswith(f"tests/{folder}/")]
        data = listed(source.data(f"tests/{folder}"), indent=" " * 8)
        targets.append(TESTS.format(data=data, layer=layer, tests=listed(chosen, indent=" " * 4)))
    return "\n".join(targets)


def main() -> None:
    (source.ROOT / "BUILD").write_text(render(source.modules(), source.tests()), encoding="utf-8")
    print("wrote BUILD")


if __name__ == "__main__":
    main()
