"""Values come out of JSON with the type and within the bounds that were asked for, or are named."""

import re

import pytest

from thinkfirst.models import hf_fields

RAW = {"n": 3, "x": 2.5, "yes": True, "big": 10**400, "word": "a", "inner": {"n": 4}, "null": None}


def test_values_come_as_asked():
    assert hf_fields.whole(RAW, "n", most=3) == 3
    assert hf_fields.positive(RAW, "x") == 2.5
    assert type(hf_fields.positive(RAW, "n")) is float
    assert hf_fields.one_of(RAW, "word", ("a", "b")) == "a"
    assert hf_fields.mapping(RAW, "inner") == {"n": 4}
    assert hf_fields.get(RAW, "null") is None


@pytest.mark.parametrize(
    "take, message",
    [
        (lambda: hf_fields.get(RAW, "gone", "outer."), "missing key 'outer.gone'"),
        (lambda: hf_fields.whole(RAW, "n", most=2), "n 3 is not a whole number from 1 to 2"),
        (lambda: hf_fields.whole(RAW, "x", most=9), "x 2.5 is not a whole number from 1 to 9"),
        (lambda: hf_fields.whole(RAW, "yes", most=9), "yes True is not a whole number"),
        (lambda: hf_fields.positive(RAW, "word", "outer."), "outer.word 'a' is not a positive number"),
        (lambda: hf_fields.positive(RAW, "big"), "is not a positive number"),
        (lambda: hf_fields.one_of(RAW, "word", ("b", "c")), "word 'a' is not b or c"),
        (lambda: hf_fields.one_of(RAW, "inner", ("b",)), "inner {'n': 4} is not b"),
        (lambda: hf_fields.mapping(RAW, "null"), "null None is not an object"),
    ],
)
def test_others_are_named(take, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        take()


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{\n"a" 1}', ":2: not JSON"),
        (b"[]", ": not a JSON object"),
        (b"\xff\xfe", ": not JSON: 'utf-8'"),
        (b'{"a": ' + b"1" * 5000 + b"}", ": not JSON: Exceeds the limit"),
    ],
)
def test_a_file_that_holds_no_object_is_named(tmp_path, content, message):
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        hf_fields.read_object(path)
