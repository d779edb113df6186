import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from thinkfirst.core import digest, mesh, sharding


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    values: tuple[int, ...]


def test_rows_by_hand():
    text = b'{"name": "x", "values": [1, 2]}\n[3]\n'
    assert digest.of_rows([Row("x", (1, 2)), [3]]) == hashlib.sha256(text).hexdigest()[:16]
    assert digest.of_rows([[3], Row("x", (1, 2))]) != digest.of_rows([Row("x", (1, 2)), [3]])


def test_files_by_hand(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert digest.of_file(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()[:16]


def test_arrays_by_hand():
    """One word: ((w ^ w >> 16) odd + 1) mixed, times 1 at place 0, modulo 2^32."""
    expected = []
    for odd in (2654435761, 2246822519):
        mixed = ((5 ^ (5 >> 16)) * odd + 1) % 2**32
        expected.append(mixed ^ (mixed >> 15))
    assert np.asarray(digest._sums(jnp.array([5], jnp.uint32))).tolist() == expected


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.standard_normal((16, 8)), jnp.float32),
        "h": jnp.asarray(rng.standard_normal(32), jnp.bfloat16),
        "q": jnp.asarray(rng.integers(-8, 8, (4, 4)), jnp.int8),
    }


def test_any_bit_name_shape_type_and_place_counts():
    whole = digest.of_arrays(tree())
    assert whole == digest.of_arrays(tree())
    changed = [
        {**tree(), "w": tree()["w"].at[3, 5].multiply(1 + 2**-23)},
        {**tree(), "w": tree()["w"].at[3, 5].multiply(-1.0)},
        {**tree(), "w": tree()["w"][::-1]},
        {**tree(), "w": tree()["w"].at[jnp.array([0, 1])].set(tree()["w"][jnp.array([1, 0])])},
        {**tree(), "w": tree()["w"].reshape(8, 16)},
        {**tree(), "h": tree()["h"].astype(jnp.float32)},
        {**tree(), "q": tree()["q"].at[0, 0].add(jnp.int8(1))},
        {"v" if name == "w" else name: leaf for name, leaf in tree().items()},
        {name: leaf for name, leaf in tree().items() if name != "q"},
    ]
    found = [digest.of_arrays(one) for one in changed]
    assert len({whole, *found}) == 1 + len(changed)


def test_the_layout_does_not_count():
    devices = mesh.make(mesh.MeshConfig(data=2, fsdp=4))
    spread = {name: jax.device_put(leaf, sharding.rows(devices)) for name, leaf in tree().items() if name != "q"}
    assert digest.of_arrays({**spread, "q": tree()["q"]}) == digest.of_arrays(tree())
