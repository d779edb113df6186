"""Kernels whose control flow hangs on prefetched tables, made countable: the tables become constants of the program.

libtpu's profile knows no prefetched data and reads it as 0, so a block that such data leaves out, or lets in, is priced
wrongly.  Where the tables are known beforehand, as those of splash attention with a fixed mask are, the kernel can read
them from a chain of selects on the grid position instead, which the profile follows.  For counting only.
"""

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


class Table:
    """Stands in for the reference to a prefetched array; gives single elements only."""

    def __init__(self, values: np.ndarray) -> None:
        self._flat = np.asarray(values).reshape(-1)
        self.shape = np.shape(values)

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        place: Any = 0
        for size, part in zip(self.shape, index, strict=True):
            place = place * size + part
        element: Any = jnp.int32(int(self._flat[0]))
        for start in np.flatnonzero(np.diff(self._flat)) + 1:
            element = jnp.where(place >= int(start), jnp.int32(int(self._flat[start])), element)
        return element


@contextlib.contextmanager
def known(module: types.ModuleType, tables: Callable[[str], Sequence[np.ndarray | None]]) -> Iterator[None]:
    """Within it, Pallas calls of `module` read `tables(name of the call)` instead of what they prefetch."""

    def pallas_call(kernel: Callable, *, grid_spec: Any, name: str, **rest: Any) -> Callable:
        stands_in = [None if values is None else Table(values) for values in tables(name)]
        prefetched, dims = grid_spec.num_scalar_prefetch, len(grid_spec.grid)
        assert len(stands_in) == prefetched, f"{name} prefetches {prefetched} operands, {len(stands_in)} are known"

        def fixed(spec: Any) -> Any:
            if spec is None or spec.index_map is None:
                return spec
            return pl.BlockSpec(
                spec.block_shape,
                lambda *index: spec.index_map(*index[:dims], *stands_in),
                memory_space=spec.memory_space,
            )

        def is_spec(x: Any) -> bool:
            return x is None or isinstance(x, pl.BlockSpec)

        specs = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=prefetched,
            grid=grid_spec.grid,
            in_specs=jax.tree.map(fixed, grid_spec.in_specs, is_leaf=is_spec),
            out_specs=jax.tree.map(fixed, grid_spec.out_specs, is_leaf=is_spec),
            scratch_shapes=grid_spec.scratch_shapes,
        )
        return pl.pallas_call(lambda *refs: kernel(*stands_in, *refs[prefetched:]), grid_spec=specs, name=name, **rest)

    stands_in_for_pl = types.SimpleNamespace(**{**vars(pl), "pallas_call": pallas_call})
    with mock.patch.object(module, "pl", stands_in_for_pl):
        yield
