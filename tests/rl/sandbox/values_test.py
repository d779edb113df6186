"""What was written is read back, type for type; whatever else is written is no value."""

import collections
import json
import math

import pytest

from thinkfirst.rl.sandbox import values

PLAIN = [
    None,
    True,
    False,
    0,
    1,
    -(10**5000),
    1.0,
    -0.0,
    0.1,
    math.inf,
    2 - 0.0j,
    "",
    "\ud800 'a\n\"\0",
    b"\0\xff",
    [],
    (),
    set(),
    frozenset({1, (2,)}),
    {1: {"a": [None, (True,)]}, (1, 2): {3.5}},
    range(0, 10**20, 3),
    collections.deque([1, [2]]),
    [[1], (1,), {1}, {1: 1}],
]


def same(one, other):
    """Equal in every type; repr tells -0.0 from 0.0 and 1 from True, and sets are compared as sets."""
    if type(one) is not type(other):
        return False
    if isinstance(one, set | frozenset):
        return sorted(map(repr, one)) == sorted(map(repr, other))
    if isinstance(one, list | tuple | collections.deque):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(same, one.items(), other.items()))
    return one == other and (isinstance(one, int) or repr(one) == repr(other))


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:30] if not isinstance(value, int) else "int")
def test_a_value_comes_back_as_it_was(value):
    text = values.dumps(value)
    assert text.isascii() and "\n" not in text
    assert same(values.loads(text), value)


def test_what_is_equal_to_python_is_told_apart():
    kinds = [1, True, 1.0, 1 + 0j]
    assert len({values.dumps(kind) for kind in kinds}) == 4
    assert [type(values.loads(values.dumps(kind))) for kind in kinds] == [int, bool, float, complex]
    assert values.dumps(0.0) != values.dumps(-0.0)
    assert math.isnan(values.loads(values.dumps(math.nan)))
    assert len({values.dumps(empty) for empty in ([], (), set(), frozenset(), {}, "", b"", None)}) == 8


def test_dictionaries_with_a_habit_are_dictionaries():
    ordered, default = collections.OrderedDict(a=2, b=1), collections.defaultdict(int, a=2, b=1)
    for mapping in (collections.Counter("aab"), ordered, default):
        assert same(values.loads(values.dumps(mapping)), {"a": 2, "b": 1})


class Liar(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


def cyclic():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize("value", [Liar(3), [Liar(3)], {Liar(3): 1}, object(), len, iter([]), int, cyclic()])
def test_instances_of_other_classes_are_refused(value):
    with pytest.raises(values.UnplainError):
        values.dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "NaN",
        "[]",
        '["int",1]',
        '["int","0x"]',
        '["int",["1"]]',
        '["bool",1]',
        '["bool","true"]',
        '["str",["a"]]',
        '["none",null]',
        '["float","0x1p+99999"]',
        '["float","1,0"]',
        '["float",1.0]',
        '["complex",["0x1p+0"]]',
        '["bytes","0"]',
        '["range",["0","1","0"]]',
        '["list","ab"]',
        '["list",{"a":1}]',
        '["set",[["list",[]]]]',
        '["dict",[[["list",[]],["none",""]]]]',
        '["dict",[["none",""]]]',
        '["object",[]]',
        '[["list"],[]]',
        "1" * 5000,
        "[" * 100_000,
        '["list",[' * 10_000,
        '["list",[' * 50 + "]]" * 50,
    ],
    ids=lambda text: text[:40],
)
def test_other_texts_are_no_value(text):
    with pytest.raises(values.UnplainError):
        values.loads(text)


def test_numbers_of_any_length_are_read_in_time_linear_in_their_text():
    assert values.loads(json.dumps(["int", "f" * 60_000])) == 16**60_000 - 1
