"""What every test stands on: eight CPU devices, strict dtype promotion, and shapes checked at run time."""

import inspect
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest

assert "jax" not in sys.modules, "JAX was imported before tests/conftest.py could set it up"

# In the environment, so that programs started by a test get the same.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
_CACHE = pathlib.Path(__file__).resolve().parents[1] / ".build" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))  # a second run, or a resumed one, compiles nothing
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # two pytest workers may both ask the TPU compiler
if os.environ["JAX_PLATFORMS"] == "cpu":  # which then looks for no TPU, on this machine or in the cloud
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

_jaxtyped = jaxtyping.jaxtyped


def _jaxtyped_except_trees(*, typechecker: Any) -> Callable[[Any], Any]:
    """`jaxtyping.jaxtyped` for all but the constructors of pytrees.

    `vmap`, `scan`, `eval_shape` and `jax.tree.map` rebuild a tree with leaves that are shapes, shardings, or arrays of
    one axis more: that is what trees are for.  Functions that take arrays are still checked.
    """
    decorate = _jaxtyped(typechecker=typechecker)
    return lambda target: target if inspect.isclass(target) and hasattr(target, "_flax_dataclass") else decorate(target)


jaxtyping.jaxtyped = _jaxtyped_except_trees
jaxtyping.install_import_hook("thinkfirst", "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    platforms = os.environ["JAX_PLATFORMS"]
    for item in items:
        for mark, platform in (("tpu", "tpu"), ("gpu", "cuda")):
            if item.get_closest_marker(mark) and platform not in platforms:
                item.add_marker(pytest.mark.skip(reason=f"runs on a {mark.upper()} only: JAX_PLATFORMS={platform}"))


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """Public datasets, tokenizer and weight shapes that are too large or not ours to keep in the repository."""
    root = pathlib.Path(__file__).resolve().parents[1]
    folder = root / os.environ.get("THINKFIRST_DATA", "../shared/data")
    if not folder.is_dir():
        pytest.skip(f"left out: checks against the real datasets and tokenizer; set THINKFIRST_DATA (no {folder})")
    return folder
