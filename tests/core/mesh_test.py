import jax
import pytest

from thinkfirst.core import mesh


def test_minus_one_takes_what_is_left():
    made = mesh.make(mesh.MeshConfig(data=-1, fsdp=2, tensor=2))
    assert dict(made.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert mesh.num_row_shards(made) == 4


def test_some_devices_only():
    assert mesh.make(mesh.MeshConfig(), jax.devices()[:3]).shape["data"] == 3


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": -1, "tensor": 3}, {"data": -1, "fsdp": -1}, {"tensor": 0}])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="MeshConfig"):
        mesh.make(mesh.MeshConfig(**sizes))


def test_a_slice_that_does_not_exist_is_refused_by_name():
    with pytest.raises(ValueError, match="no TPU slice 'v5e:99x1'"):
        mesh.described("v5e:99x1")
