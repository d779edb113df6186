"""The checkout as its own rules see it: modules, layers, syntax trees.  Nothing of it is imported.

A rule is a function from one `Module` (or several) to findings, "path:line: what is wrong"; its test applies it to the
tree, where it must find nothing, and to a planted snippet, where it must find something.
"""

import ast
import dataclasses
import functools
import pathlib
import textwrap
from collections.abc import Iterable, Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "thinkfirst"
LAYERS = ("core", "kernels", "models", "rl", "launch")


@dataclasses.dataclass(frozen=True)
class Module:
    """A Python file by its path in the checkout, such as "rl/batch.py"."""

    path: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=self.path)

    @property
    def layer(self) -> str:
        return self.path.split("/")[0]

    @property
    def name(self) -> str:
        return ".".join((PACKAGE, *self.path.removesuffix(".py").removesuffix("/__init__").split("/")))

    def at(self, node: ast.AST, message: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {message}"


def planted(path: str, text: str) -> Module:
    return Module(path, textwrap.dedent(text))


def expect_none(findings: Iterable[str]) -> None:
    found = list(findings)
    assert not found, "\n" + "\n".join(found)


def _read(folder: str) -> tuple[Module, ...]:
    files = sorted((ROOT / folder).rglob("*.py"))
    return tuple(Module(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")) for file in files)


@functools.cache
def modules() -> tuple[Module, ...]:
    """Every Python file of the five layers."""
    return tuple(module for layer in LAYERS for module in _read(layer))


@functools.cache
def tests() -> tuple[Module, ...]:
    """Every Python file under tests/."""
    return _read("tests")


def data(folder: str) -> list[str]:
    """Paths of the files in a folder that are neither Python nor hidden."""
    files = (file.relative_to(ROOT) for file in sorted((ROOT / folder).rglob("*")) if file.is_file())
    shown = (file for file in files if not any(part.startswith(".") for part in file.parts))
    return [file.as_posix() for file in shown if file.suffix not in (".py", ".pyc")]


def imports(module: Module) -> Iterator[tuple[ast.stmt, str]]:
    """Dotted names that the module imports, anywhere in it: `from a import b` gives "a.b"."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            for alias in node.names:
                yield node, f"{origin}.{alias.name}"


def names(module: Module) -> Iterator[tuple[ast.expr, str]]:
    """Every use of a name or attribute chain as the full dotted name that its import gives it."""
    origin = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            origin |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            origin |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(module.tree):
        dotted = _dotted(node)
        if dotted:
            first, _, rest = dotted.partition(".")
            yield node, origin.get(first, first) + (f".{rest}" if rest else "")


def _dotted(node: ast.AST) -> str:
    """ "a.b.c" for such an expression, "" for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""
