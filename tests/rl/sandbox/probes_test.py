"""The self-test names what a hostile program managed, layer by layer."""

import pytest

from thinkfirst.rl.sandbox import probes

REFUSED = dict.fromkeys(probes.REFUSED_BY, False) | {"honest": True}


def test_nothing_managed_is_no_hole():
    assert probes.holes(REFUSED, ("rlimits", "seccomp", "landlock", "namespaces")) == []


@pytest.mark.parametrize("name", probes.REFUSED_BY)
def test_what_was_managed_is_a_hole_where_a_layer_should_have_refused_it(name):
    layers = probes.REFUSED_BY[name]
    assert probes.holes(REFUSED | {name: True}, layers) == [f"{name} in spite of {' + '.join(layers)}"]
    others = {"rlimits", "seccomp", "landlock", "namespaces"} - set(layers)
    assert probes.holes(REFUSED | {name: True}, tuple(others)) == []


@pytest.mark.parametrize("managed", [None, {}, {"honest": True}, REFUSED | {"honest": False}, REFUSED | {"more": 1}])
def test_a_program_that_could_not_try_proves_nothing(managed):
    assert probes.holes(managed, ("rlimits",))
