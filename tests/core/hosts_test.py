"""Several processes, each of which this one plays in turn; real ones: tests/system/hosts_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkfirst.core import hosts, mesh, sharding


def test_one_process_tells_itself():
    assert hosts.is_first() and not hosts.several() and not hosts.preempted(1)
    assert hosts.gathered({"a": 1}) == [{"a": 1}]
    assert hosts.told(lambda: 7) == 7
    with pytest.raises(OSError, match="full"):
        hosts.told(lambda: (_ for _ in ()).throw(OSError("full")))
    hosts.check_same({"settings": 1})


def test_what_differs_is_named_with_its_host(monkeypatch):
    others = [{"settings": "a", "data": 1}, {"settings": "a", "data": 1}, {"settings": "a", "data": 2, "base": 3}]
    monkeypatch.setattr(hosts, "gathered", lambda mine: others)
    with pytest.raises(ValueError, match="host 2 differs from host 0 in base, data: base is 3 there, None on host 0"):
        hosts.check_same(others[0])


def test_an_error_of_the_first_host_is_everybodys(monkeypatch):
    """Hosts 0 and 1 in turn: the value goes round, and so does an error, as one that ends the others too."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    sent = []
    monkeypatch.setattr(hosts, "gathered", lambda mine: sent.append(mine) or [sent[0], None])

    def full():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        hosts.told(full)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match="on the first host: disk full"):
        hosts.told(lambda: pytest.fail("only the first host looks"))
    sent[0] = {"value": [1, 2]}
    assert hosts.told(lambda: pytest.fail("only the first host looks")) == [1, 2]


def test_a_process_that_is_not_among_the_processes_is_refused():
    with pytest.raises(ValueError, match="--process=2 must lie below --num_processes=2"):
        hosts.connect("localhost:1", 2, 2)


def test_a_slice_whose_hosts_were_not_found_is_no_machine_of_its_own(monkeypatch):
    """libtpu joins the chips of all hosts by itself; JAX's own service knew of none."""
    tried = []

    def initialize(*arguments, **_):
        tried.append(arguments)
        if len(tried) == 1:
            raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match="this slice has 4 hosts, of which JAX found only this one: give every host"):
        hosts.connect()
    assert len(tried) == 2
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    tried.clear()
    hosts.connect()


def test_what_is_fetched_is_a_copy_and_comes_back_as_it_lay():
    layout = sharding.rows(mesh.make(mesh.MeshConfig(data=4, fsdp=2)))
    device = {"x": jax.device_put(jnp.arange(16.0), layout), "n": jnp.int32(3)}
    host = hosts.fetched(device)
    assert isinstance(host["x"], np.ndarray) and host["x"].flags.owndata
    back = hosts.placed(host, device)
    assert back["x"].sharding == layout and np.array_equal(back["x"], np.arange(16.0)) and int(back["n"]) == 3
