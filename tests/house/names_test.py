"""Shapes have one alphabet: what an annotation says, the name's suffix says too."""

import ast
import re
from collections.abc import Iterator

from house import source

DTYPES = (
    {"Float", "Int", "UInt", "Bool", "Shaped", "Num", "Real", "Inexact", "Integer", "Complex", "Key"}
    | {f"{kind}{bits}" for kind in ("Int", "UInt") for bits in (4, 8, 16, 32, 64)}
    | {"Float16", "Float32", "Float64", "BFloat16"}
)
SUFFIX = re.compile(r"_*[a-z][a-z0-9_]*_([A-Z]+)")


def letters() -> set[str]:
    """The keys of LETTERS in core/shapes.py, read without importing it."""
    (shapes,) = (module for module in source.modules() if module.path == "core/shapes.py")
    for node in shapes.tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "LETTERS":
            return set(ast.literal_eval(node.value))
    raise AssertionError("core/shapes.py defines no LETTERS")


def shape_of(annotation: ast.expr | None) -> str | None:
    """The dimensions of `Float[Array, "B T"]`, or of the one array in `Float[Array, "B T"] | None`; None without."""
    if isinstance(annotation, ast.BinOp):
        sides = [shape_of(annotation.left), shape_of(annotation.right)]
        return next((side for side in sides if side is not None), None) if None in sides else None
    if not (isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple)):
        return None
    name = annotation.value.attr if isinstance(annotation.value, ast.Attribute) else getattr(annotation.value, "id", "")
    dims = annotation.slice.elts[-1]
    if name in DTYPES and isinstance(dims, ast.Constant) and isinstance(dims.value, str):
        return dims.value
    return None


def declared(module: source.Module) -> Iterator[tuple[ast.AST, str, ast.expr | None]]:
    """(where, name, annotation) of every parameter, field and variable; annotation None where there is none."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.arg):
            yield node, node.arg, node.annotation
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name | ast.Attribute):
            yield node, node.target.id if isinstance(node.target, ast.Name) else node.target.attr, node.annotation
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node, node.id if isinstance(node, ast.Name) else node.attr, None


def misnamed(module: source.Module, alphabet: set[str]) -> list[str]:
    """Suffixes with unknown letters, and suffixes that differ from the annotation where that is all plain letters."""
    found = []
    for node, name, annotation in declared(module):
        match = SUFFIX.fullmatch(name)
        suffix = match[1] if match else ""
        unknown = sorted(set(suffix) - alphabet)
        if unknown:
            found.append(module.at(node, f"{name}: {' '.join(unknown)} not in core/shapes.py"))
        shape = shape_of(annotation)
        if shape is not None and all(re.fullmatch("[A-Z]", dim) for dim in shape.split()):
            wanted = "".join(shape.split())
            if suffix != wanted:
                call_it = f"end in _{wanted}" if wanted else "have no suffix"
                found.append(module.at(node, f'{name} is annotated "{shape}": it must {call_it}'))
    return found


def misspelt(module: source.Module, alphabet: set[str]) -> list[str]:
    """Capitals in any annotation, returned ones included, that are not in the alphabet, or are several run together."""
    found = []
    for node in ast.walk(module.tree):
        for dim in (shape_of(node) or "").split() if isinstance(node, ast.Subscript) else ():
            if re.fullmatch("[A-Z]+", dim) and dim not in alphabet:
                found.append(module.at(node, f"dimension {dim} is not a letter of core/shapes.py"))
    return found


def test_names_say_the_shape_that_their_annotation_says():
    alphabet = letters()
    source.expect_none(finding for module in source.modules() for finding in misnamed(module, alphabet))


def test_annotations_use_the_alphabet():
    alphabet = letters()
    source.expect_none(finding for module in source.modules() for finding in misspelt(module, alphabet))


def test_a_wrong_name_is_found():
    def count(text):
        return len(misnamed(source.planted("rl/a.py", text), {"B", "T", "D"}))

    assert count('def f(logp_BT: Float[Array, "B T"], loss: Float[Array, ""], n: int): ...') == 0
    assert count('def f(logp: Float[Array, "B T"]): ...') == 1
    assert count('def f(logp_TB: Float[jax.Array, "B T"]): ...') == 1
    assert count('def f(*, mask_BT: Bool[Array, "B T"] | None = None): ...') == 0
    assert count('def f(*, mask: Bool[Array, "B T"] | None = None): ...') == 1
    assert count('class A:\n    loss_B: jaxtyping.Float32[Array, ""]') == 1
    assert count('def f(x: Float[Array, "B _"], y: Float[Array, "*any"], z: Float[Array, "B T+1"]): ...') == 0
    assert count("x_BQ = 1\nfor y_Q in x_BQ: pass") == 2
    assert count("MAX_T = 1\nT = 2\nself.x_BT = 3") == 0


def test_a_wrong_dimension_is_found():
    def count(text):
        return len(misspelt(source.planted("rl/a.py", text), {"B", "T"}))

    assert count('def f() -> Float[Array, "B T"]: ...') == 0
    assert count('def f() -> Float[Array, "BT"]: ...') == 1
    assert count('def f(x: tuple[Int[Array, "B Q"], ...]): ...') == 1
