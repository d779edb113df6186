"""Low-rank adapters (Hu et al., arXiv 2106.09685): y = x W + (alpha / rank) (x A) B, as a tree of their own.

The factors of a weight follow from its einsum: A takes the axes the einsum contracts to the rank R, B takes R to the
axes it produces.  "BTNH,NHD->BTD" gives A [N, H, R] and B [R, D].  A is drawn, B is zero: a fresh adapter changes
nothing.  Factors are float32 whatever the base is; gradients are taken with respect to this tree alone.  A weight
without factors is not adapted, and ranks may differ from weight to weight.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from thinkfirst.models import layout

Path = layout.Path
Factors = dict[str, jax.Array]  # {"a": ..., "b": ...}
Specs = dict[Path, tuple[str, tuple[int, ...]]]  # path -> (einsum, stacked shape), from `Model.adapted`
Tree = dict[str, Any]  # nested like the model's parameters, with Factors at the adapted weights

TARGETS = ("query", "key", "value", "output", "gate", "up", "down")


@flax.struct.dataclass
class Adapter:
    """Factors of every adapted weight and the number alpha / rank they are scaled by."""

    factors: Tree
    scale: float = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Letters:
    """An einsum of one activation and one weight, taken apart."""

    activation: str
    weight: str
    result: str

    @property
    def contracted(self) -> str:
        """Axes of the weight that the activation brings."""
        return "".join(letter for letter in self.weight if letter not in self.result)

    @property
    def produced(self) -> str:
        """Axes of the weight that the result keeps."""
        return "".join(letter for letter in self.weight if letter in self.result)


def split(spec: str) -> Letters:
    """ "BTD,DNH->BTNH" in its three parts."""
    operands, result = spec.split("->")
    activation, weight = operands.split(",")
    return Letters(activation, weight, result)


def delta(spec: str, x: jax.Array, factors: Factors) -> jax.Array:
    """(x A) B in float32, the factors rounded to the activation's dtype for the first product only."""
    letters = split(spec)
    kept = "".join(letter for letter in letters.activation if letter not in letters.contracted)
    down = f"{letters.activation},{letters.contracted}R->{kept}R"
    up = f"{kept}R,R{letters.produced}->{letters.result}"
    low = jnp.einsum(down, x, factors["a"].astype(x.dtype), preferred_element_type=jnp.float32)
    return jnp.einsum(up, low, factors["b"])


def scaled(adapter: Adapter | None) -> Tree:
    """The tree the model takes: B already multiplied by alpha / rank; no adapter is an empty tree."""
    if adapter is None:
        return {}
    is_factors = lambda node: isinstance(node, dict) and set(node) == {"a", "b"}  # noqa: E731
    scale = lambda node: {"a": node["a"], "b": node["b"] * adapter.scale}  # noqa: E731
    return jax.tree.map(scale, adapter.factors, is_leaf=is_factors)


def init(specs: Specs, key: jax.Array, *, rank: int, alpha: float) -> Adapter:
    """A fresh adapter for the weights in `specs`.

    A ~ Normal(0, 1 / fan_in) with a key folded from the path's place, B = 0.
    """
    if rank < 1:
        raise ValueError(f"rank {rank} of an adapter must be at least 1")
    tree: Tree = {}
    for place, (path, (spec, shape)) in enumerate(sorted(specs.items())):
        letters, size = split(spec), dict(zip("L" + split(spec).weight, shape, strict=True))
        contracted = tuple(size[letter] for letter in letters.contracted)
        produced = tuple(size[letter] for letter in letters.produced)
        fan_in = 1
        for length in contracted:
            fan_in *= length
        draw = jax.random.normal(jax.random.fold_in(key, place), (size["L"], *contracted, rank), jnp.float32)
        layout.put(tree, path, {"a": draw * fan_in**-0.5, "b": jnp.zeros((size["L"], rank, *produced), jnp.float32)})
    return Adapter(factors=tree, scale=alpha / rank)


def letters(specs: Specs, adapter: Adapter) -> Adapter:
    """The adapter's tree with the dimension letters of each factor in its place."""
    tree: Tree = {}
    for path, _ in walk(adapter.factors):
        parts = split(specs[path][0])
        layout.put(tree, path, {"a": f"L{parts.contracted}R", "b": f"LR{parts.produced}"})
    return dataclasses.replace(adapter, factors=tree)


def merge(params: Tree, adapter: Adapter, specs: Specs) -> Tree:
    """Base parameters with W + scale * A B in place of every adapted W."""
    merged = jax.tree.map(lambda x: x, params)
    for path, factors in walk(adapter.factors):
        owner = layout.at(merged, path)
        owner["weight"] = merged_weight(owner["weight"], factors, specs[path][0], adapter.scale)
    return merged


def merged_weight(weight: jax.Array, factors: Mapping[str, ArrayLike], spec: str, scale: float) -> jax.Array:
    """W + scale * A B of a stack of weights.

    The sum is taken in float32 and rounded to the dtype of W: a chain merged into a bfloat16 base is rounded once for
    each adapter, where `concatenate` of the chain is rounded once.
    """
    letters = split(spec)
    product = jnp.einsum(
        f"L{letters.contracted}R,LR{letters.produced}->L{letters.weight}",
        factors["a"],
        factors["b"],
        precision=jax.lax.Precision.HIGHEST,  # once per run, and a TPU would otherwise multiply in bfloat16
    )
    return (weight.astype(jnp.float32) + scale * product).astype(weight.dtype)


def concatenate(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter that adds what all of them together add to the base: their A side by side, their B stacked.

    A scale that all share is kept; where they differ it is 1 and each B holds its own.
    """
    if not adapters:
        raise ValueError("there is no adapter to concatenate")
    scales = {adapter.scale for adapter in adapters}
    scale = scales.pop() if len(scales) == 1 else 1.0
    held: dict[Path, list[Factors]] = {}
    for adapter in adapters:
        for path, factors in walk(adapter.factors):
            b = factors["b"] if adapter.scale == scale else factors["b"] * adapter.scale
            held.setdefault(path, []).append({"a": factors["a"], "b": b})
    tree: Tree = {}
    for path, parts in held.items():
        a = jnp.concatenate([part["a"] for part in parts], axis=-1)
        b = jnp.concatenate([part["b"] for part in parts], axis=1)
        layout.put(tree, path, {"a": a, "b": b})
    return Adapter(factors=tree, scale=scale)


def walk(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Factors]]:
    """(path, factors) of every adapted weight."""
    if set(tree) == {"a", "b"}:
        yield path, tree
    else:
        for name, node in tree.items():
            yield from walk(node, (*path, name))
