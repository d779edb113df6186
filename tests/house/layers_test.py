"""launch -> rl -> models -> kernels -> core: imports point down, never round, and some names stay in one file."""

import ast
import graphlib
from collections.abc import Iterable

from house import source

FORBIDDEN = {
    "jax._src": "private to JAX",
    "jax.experimental.pjit": "deprecated: jax.jit takes shardings",
}
PEERS = "launch/benchmarks/peers/"  # which can ask nobody of ours
# What only these files may call: everybody else asks core.mesh and core.sharding.
CALLED_BY = {
    "jax.make_mesh": ("core/mesh.py",),
    "jax.experimental.mesh_utils.create_device_mesh": ("core/mesh.py",),
    "jax.experimental.topologies.make_mesh": ("core/mesh.py",),
    "jax.sharding.Mesh": ("core/mesh.py",),
    "jax.sharding.PartitionSpec": ("core/mesh.py", "core/sharding.py"),
    "jax.P": ("core/mesh.py", "core/sharding.py"),
}
# What only files whose path begins so may import: nothing that runs may depend on what is counted of it.
IMPORTED_BY = {"thinkfirst.kernels.cost": ("kernels/cost/", "rl/plan", "launch/bench", "launch/plan")}


def upward(module: source.Module) -> list[str]:
    """Imports of a layer above one's own, and imports that hide which layer is meant."""
    allowed = source.LAYERS[: source.LAYERS.index(module.layer) + 1]
    found = []
    for node, name in source.imports(module):
        head, *rest = name.split(".")
        if head == source.PACKAGE and (not rest or rest[0] not in allowed):
            found.append(module.at(node, f"{module.layer} must not import {name}"))
        elif not head:
            found.append(module.at(node, f"relative import {name}: name the layer"))
        elif head in source.LAYERS:
            found.append(module.at(node, f"import {source.PACKAGE}.{name}, not {name}"))
    return found


def cycles(modules: Iterable[source.Module]) -> list[str]:
    """Modules that import each other, in a ring of any length, lazily or not."""
    known = {module.name: module for module in modules}
    graph = {
        module.name: {
            target
            for _, name in source.imports(module)
            for target in (name if name in known else name.rpartition(".")[0],)
            if target in known
        }
        for module in known.values()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" -> ".join(reversed(error.args[1]))]
    return []


def forbidden(module: source.Module) -> list[str]:
    uses = [*source.imports(module), *source.names(module)]
    return [
        module.at(node, f"{name}: {why}")
        for node, name in uses
        for banned, why in FORBIDDEN.items()
        if f"{name}.".startswith(f"{banned}.")
    ]


def misplaced_calls(module: source.Module) -> list[str]:
    """Meshes and partition specs made outside the files that own them."""
    if module.path.startswith(PEERS):
        return []
    called = {id(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call)}
    return [
        module.at(node, f"{name} is called in {' and '.join(CALLED_BY[name])} only")
        for node, name in source.names(module)
        if id(node) in called and name in CALLED_BY and module.path not in CALLED_BY[name]
    ]


def misplaced_imports(module: source.Module) -> list[str]:
    return [
        module.at(node, f"{name} is imported by {' and '.join(starts)} only")
        for node, name in source.imports(module)
        for banned, starts in IMPORTED_BY.items()
        if f"{name}.".startswith(f"{banned}.") and not module.path.startswith(starts)
    ]


def orphans(modules: Iterable[source.Module]) -> list[str]:
    """Folders of modules without an `__init__.py`, which the wheel would leave out."""
    paths = {module.path for module in modules}
    folders = {path.rpartition("/")[0] for path in paths}
    return [f"{folder}/ has no __init__.py" for folder in sorted(folders) if f"{folder}/__init__.py" not in paths]


def test_imports_point_down():
    source.expect_none(finding for module in source.modules() for finding in upward(module))


def test_an_import_that_points_up_is_found():
    def count(path, text):
        return len(upward(source.planted(path, text)))

    assert count("kernels/sample/api.py", "from thinkfirst.core import shapes") == 0
    assert count("kernels/sample/api.py", "from thinkfirst.kernels.sample import tpu") == 0
    assert count("kernels/sample/api.py", "from thinkfirst.models import gemma") == 1
    assert count("rl/data/gsm8k.py", "def f():\n    import thinkfirst.launch.train") == 1
    assert count("core/mesh.py", "from thinkfirst import rl") == 1
    assert count("rl/loss.py", "from . import batch") == 1
    assert count("rl/loss.py", "from core import shapes") == 1


def test_no_module_imports_itself_through_another():
    source.expect_none(cycles(source.modules()))


def test_a_ring_of_imports_is_found():
    a = source.planted("rl/a.py", "from thinkfirst.rl import b")
    b = source.planted("rl/b.py", "def f():\n    from thinkfirst.rl.a import x")
    assert cycles([a, b])
    assert not cycles([a, source.planted("rl/b.py", "import thinkfirst.core.shapes")])


def test_no_private_or_deprecated_jax():
    source.expect_none(finding for module in source.modules() for finding in forbidden(module))


def test_private_and_deprecated_jax_is_found():
    for text in (
        "from jax._src import core",
        "import jax._src.core",
        "import jax\njax._src.core.x()",
        "from jax.experimental import pjit",
        "from jax.experimental.pjit import pjit",
    ):
        assert forbidden(source.planted("rl/a.py", text)), text
    assert not forbidden(source.planted("rl/a.py", "from jax.experimental import pallas as pl\npl.pallas_call"))


def test_meshes_and_partition_specs_are_made_in_their_own_files():
    source.expect_none(finding for module in source.modules() for finding in misplaced_calls(module))


def test_a_mesh_or_partition_spec_made_elsewhere_is_found():
    for text in (
        "import jax\njax.make_mesh((1,), ('data',))",
        "from jax import make_mesh\nmake_mesh((1,), ('data',))",
        "from jax.sharding import PartitionSpec as P\nP('data')",
        "import jax\njax.sharding.PartitionSpec('data')",
        "import jax\njax.P('data')",
        "from jax import sharding as js\njs.Mesh([], ())",
    ):
        assert misplaced_calls(source.planted("rl/rollout.py", text)), text
        assert not misplaced_calls(source.planted("core/mesh.py", text)), text
        assert not misplaced_calls(source.planted("launch/benchmarks/peers/somebody.py", text)), text
    assert not misplaced_calls(source.planted("rl/rollout.py", "def f(mesh: jax.sharding.Mesh): ..."))


def test_only_the_bench_counts_cycles():
    source.expect_none(finding for module in source.modules() for finding in misplaced_imports(module))


def test_a_kernel_that_counts_its_own_cycles_is_found():
    for text in ("from thinkfirst.kernels.cost import table", "from thinkfirst.kernels import cost"):
        assert misplaced_imports(source.planted("kernels/sample/api.py", text)), text
        assert not misplaced_imports(source.planted("launch/benchmarks/cycle_counts.py", text)), text
    assert not misplaced_imports(source.planted("kernels/sample/api.py", "from thinkfirst.kernels import costly"))


def test_every_folder_is_a_package():
    source.expect_none(orphans(source.modules()))
    assert orphans([source.planted("rl/sandbox/tiers.py", "")])
