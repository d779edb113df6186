"""Programs that our kernels are counted against."""

from collections.abc import Callable

import jax

CASES: dict[str, Callable[[], tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]]] = {}
