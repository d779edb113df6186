import pytest

from thinkfirst.core import mesh, sharding


def test_the_table():
    layout = mesh.make(mesh.MeshConfig(data=2, fsdp=2, tensor=2))
    spec = lambda letters, *shape: tuple(sharding.parameter_spec(letters, shape, layout))  # noqa: E731
    assert spec("LDNH", 3, 8, 4, 16) == (None, "fsdp", "tensor", None)
    assert spec("VD", 64, 8) == ("tensor", "fsdp")
    assert spec("LDR", 3, 8, 5) == (None, "fsdp", None)
    assert spec("LRF", 3, 5, 8) == (None, None, "tensor")


def test_one_key_value_head_is_kept_everywhere_and_other_uneven_axes_are_refused():
    layout = mesh.make(mesh.MeshConfig(data=2, fsdp=2, tensor=2))
    assert tuple(sharding.parameter_spec("LDKH", (3, 8, 1, 16), layout)) == (None, "fsdp", None, None)
    with pytest.raises(ValueError, match="N=3 of a weight LDNH is not divisible by tensor=2"):
        sharding.parameter_spec("LDNH", (3, 8, 3, 16), layout)
