import dataclasses
from typing import Literal

import pytest

from thinkfirst.core import config


@dataclasses.dataclass(frozen=True)
class Leaf:
    name: str
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate={self.rate} must not be negative")


@dataclasses.dataclass(frozen=True)
class Root:
    stages: tuple[Leaf, ...] = (Leaf("one"), Leaf("two"))
    steps: int = 3
    fast: bool = False
    words: tuple[str, ...] = ()


def test_values_are_set_by_their_type():
    changed = config.override(
        Root(), ["steps=7", "stages.two.rate=1e-3", "fast=true", "stages.one.kind=b", "words=x,y"]
    )
    assert changed == Root(stages=(Leaf("one", kind="b"), Leaf("two", rate=1e-3)), steps=7, fast=True, words=("x", "y"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps=many", "steps=many: expected int"),
        ("steps=1.5", "expected int"),
        ("stage.one.rate=1", "no setting 'stage'; there is: stages, steps, fast, words"),
        ("stages.three.rate=1", "no 'three' here; there is: one, two"),
        ("stages.one=1", "group of settings"),
        ("stages.one.kind=c", "expected one of a, b"),
        ("steps.deeper=1", "has no 'deeper'"),
        ("fast=yes", "expected bool"),
        ("steps", "expected key=value"),
        ("stages.one.rate=-1", "must not be negative"),
    ],
)
def test_bad_settings_are_named(assignment, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        config.override(Root(), [assignment])


def test_digest_changes_with_any_setting():
    assert config.digest(Root()) == config.digest(Root())
    assert config.digest(Root()) != config.digest(config.override(Root(), ["stages.two.rate=0.6"]))


def test_differences_name_the_leaf():
    old, new = config.dump(Root()), config.dump(config.override(Root(), ["stages.two.rate=0.6", "steps=4"]))
    assert config.differences(old, new) == ["stages.1.rate: 0.5 -> 0.6", "steps: 3 -> 4"]


def test_what_is_dumped_is_restored():
    changed = config.override(Root(), ["stages.two.rate=0.6", "steps=4", "words=x,y"])
    assert config.restored(Root(), config.dump(changed)) == changed
    assert config.restored(changed, config.dump(Root())) == Root()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "the settings more are not on both sides"),
        ({"steps": "x"}, "steps: 'x' is no int"),
        ({"steps": 1.5}, "steps: 1.5 is no int"),
        ({"steps": True}, "steps: True is no int"),
        ({"stages": []}, "stages: 0 entries, expected 2"),
        ({"stages": 3}, "stages: 3 is no tuple"),
        ({"stages": [{"name": "one"}, {}]}, "stages.0: the settings .* are not on both sides"),
    ],
)
def test_what_does_not_fit_is_not_restored(change, message):
    with pytest.raises(ValueError, match=message):
        config.restored(Root(), config.dump(Root()) | change)
