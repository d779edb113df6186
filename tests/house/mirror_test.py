"""tests/<layer>/<module>_test.py tests <layer>/<module>.py, or the package of that name; no test outlives its module.

More about the same module goes into <module>_<aspect>_test.py.
Tests of several layers at once stand in a folder of tests/ that is not named like a layer.
"""

from house import source


def strays(tests: list[str], modules: list[str]) -> list[str]:
    """Test files of a layer to which no module corresponds, and files there that pytest would not collect."""
    known = {module.removesuffix(".py").removesuffix("/__init__") for module in modules}
    found = []
    for path in tests:
        _, *rest = path.split("/")
        if rest[0] not in source.LAYERS:
            continue
        if not path.endswith("_test.py"):
            found.append(f"{path}: pytest collects *_test.py only")
            continue
        target = "/".join(rest).removesuffix("_test.py")
        if not any(f"{target}_".startswith(f"{module}_") for module in known):
            found.append(f"{path}: there is no {target}.py")
    return found


def test_every_test_has_its_module():
    source.expect_none(strays([test.path for test in source.tests()], [module.path for module in source.modules()]))


def test_a_stray_test_is_found():
    modules = ["rl/loss.py", "kernels/sample/__init__.py", "kernels/sample/tpu.py"]
    fine = ["tests/rl/loss_test.py", "tests/rl/loss_parity_test.py", "tests/kernels/sample/tpu_test.py"]
    fine += ["tests/kernels/sample_test.py", "tests/house/names_test.py", "tests/conftest.py"]
    assert strays(fine, modules) == []
    assert strays(["tests/rl/gone_test.py"], modules)
    assert strays(["tests/models/loss_test.py"], modules)
    assert strays(["tests/rl/test_loss.py"], modules)
