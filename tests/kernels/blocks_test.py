"""Block sizes come from the table of the chip that is traced for, and are the kernel's own where it says nothing."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from thinkfirst.kernels import blocks, placement
from thinkfirst.kernels.cost import chips
from thinkfirst.kernels.sample import noise, tpu

DEFAULT = {"block": 512, "part": 32}


@pytest.fixture
def tables(monkeypatch, tmp_path):
    """An empty folder in the place of kernels/block_sizes."""
    monkeypatch.setattr(blocks, "FOLDER", tmp_path)
    blocks.table.cache_clear()
    yield tmp_path
    blocks.table.cache_clear()


def on(monkeypatch, kind):
    monkeypatch.setattr(placement, "device_kind", lambda: kind)


def test_sizes_are_those_of_the_chip_and_the_shapes(tables, monkeypatch):
    (tables / "v5e.json").write_text(json.dumps({"sample": {"64 rows": {"block": 4096}}}))
    for kind in ("TPU v5 lite", "TPU v5e"):
        on(monkeypatch, kind)
        assert blocks.sizes("sample", "64 rows", DEFAULT) == {"block": 4096, "part": 32}
        assert blocks.sizes("sample", "32 rows", DEFAULT) == DEFAULT
        assert blocks.sizes("decode", "64 rows", DEFAULT) == DEFAULT
    for kind in ("TPU v5", "TPU v6 lite", "TPU v4", "cpu"):
        on(monkeypatch, kind)
        assert blocks.sizes("sample", "64 rows", DEFAULT) == DEFAULT


def test_a_kernel_takes_them_and_draws_the_same_tokens(tables, monkeypatch):
    """Blocks of 32 and parts of 16 rows instead of one block of 96: seen in the grid, not in the tokens."""
    hidden_BD = jax.random.normal(jax.random.key(0), (4, 128))
    table_VD = jax.random.normal(jax.random.key(1), (80, 128))
    words = noise.key_words(jax.random.split(jax.random.key(2), 4))

    def draw(hidden_BD):
        return tpu.draw(hidden_BD, table_VD, words, temperature=jnp.float32(1), interpret=True)

    on(monkeypatch, "TPU v5 lite")
    whole = draw(hidden_BD)
    (tables / "v5e.json").write_text(json.dumps({"sample": {"32 rows of 128 float32": {"block": 64, "part": 16}}}))
    blocks.table.cache_clear()
    assert "grid=(1, 2)" in str(jax.make_jaxpr(draw)(hidden_BD))
    assert draw(hidden_BD).token_B.tolist() == whole.token_B.tolist()


def test_the_files_hold_whole_numbers_for_chips_that_are_counted():
    files = list(blocks.FOLDER.glob("*"))
    assert files
    for file in files:
        assert file.stem in chips.CHIPS
        assert file.stem in blocks.CHIPS.values()
        for shapes in json.loads(file.read_text()).values():
            assert shapes
            assert all(isinstance(size, int) for sizes in shapes.values() for size in sizes.values())


def test_each_chip_that_is_counted_is_known_by_the_name_its_compiler_gives():
    pytest.importorskip("libtpu", reason="left out: device kinds as libtpu names them; libtpu is not installed")
    for chip in chips.CHIPS.values():
        device = topologies.get_topology_desc(platform="tpu", topology_name=chip.topology).devices[0]
        assert blocks.CHIPS[device.device_kind] == chip.name
