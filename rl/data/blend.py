"""Two lines of demonstrations as one, in which the second has a fixed share of the rows, evenly spread.

Row i is the second's if floor((i + 1) s) > floor(i s): a function of i alone, so that a cursor is a number.
"""

import fractions
import math
from typing import Protocol, runtime_checkable

from thinkfirst.rl import batch


@runtime_checkable
class Demonstrations(Protocol):
    """An endless line of things to imitate."""

    def demonstration(self, index: int) -> batch.Demonstration: ...


@runtime_checkable
class Endless(Protocol):
    """The same by subscript, as `mix.endless` gives it."""

    def __getitem__(self, index: int) -> batch.Demonstration: ...


class Blend:
    """The line of `first`, with `share` of its rows taken by `second`."""

    def __init__(self, first: Demonstrations, second: Endless, share: float) -> None:
        self._first, self._second = first, second
        self._share = fractions.Fraction(str(share))

    def demonstration(self, index: int) -> batch.Demonstration:
        taken = math.floor(index * self._share)
        if math.floor((index + 1) * self._share) > taken:
            return self._second[taken]
        return self._first.demonstration(index - taken)
