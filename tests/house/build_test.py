"""BUILD lists what is in the tree."""

from house import source, write_build


def test_build_is_in_step_with_the_tree():
    written = (source.ROOT / "BUILD").read_text(encoding="utf-8")
    in_step = written == write_build.render(source.modules(), source.tests())
    assert in_step, "BUILD and the tree differ: run `make build-file`"


def test_a_module_a_program_and_a_test_each_show():
    modules = tuple(source.planted(f"{layer}/__init__.py", "") for layer in source.LAYERS)
    loss = source.planted("rl/loss.py", "")
    train = source.planted("launch/train.py", "def cli(): ...")
    test = source.planted("tests/rl/loss_test.py", "")
    before = write_build.render(modules, ())
    assert '"rl/loss.py"' not in before
    after = write_build.render((*modules, loss, train), (test, source.planted("tests/house/x_test.py", "")))
    assert '"rl/loss.py"' in after
    assert 'py_binary(\n    name = "train"' in after
    assert "tests/rl/loss_test.py" in after
    assert "x_test" not in after


def test_a_layer_depends_on_those_below_it():
    text = write_build.render(source.modules(), ())
    target = text[text.index('name = "models"') :]
    deps = target[target.index("deps = [") : target.index("]", target.index("deps = ["))]
    assert [layer for layer in source.LAYERS if f'":{layer}"' in deps] == ["core", "kernels"]
