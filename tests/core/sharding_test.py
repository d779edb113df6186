import jax
import numpy as np
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


def test_what_is_placed_is_read_part_by_part(monkeypatch):
    layout = mesh.make(mesh.MeshConfig(data=2, fsdp=2, tensor=2))
    whole = np.arange(6 * 8 * 4, dtype=np.float32).reshape(6, 8, 4)
    asked = []

    def read(index):
        asked.append(index)
        return whole[index]

    where = jax.sharding.NamedSharding(layout, sharding.parameter_spec("LDF", whole.shape, layout))
    np.testing.assert_array_equal(sharding.place(whole.shape, whole.dtype, where, read), whole)
    assert {whole[index].shape for index in asked} == {(6, 4, 2)}
    monkeypatch.setattr(sharding, "PLACED_BYTES", 3 * 4 * 2 * 4)  # three rows of such a part
    found = sharding.place(whole.shape, whole.dtype, where, read)
    np.testing.assert_array_equal(found, whole)
    assert found.sharding == where and {whole[index].shape for index in asked[8:]} == {(3, 4, 2)}
