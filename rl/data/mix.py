"""Several data sets as one source: exact counts of each, one shuffled line, and held-out problems of their own.

A part takes `count` of its training problems, chosen by the seed and its name: what another part takes changes nothing.
A question that stands twice is taken once, where it comes first.  An epoch is every problem taken, once, in an order of
its own; problem i of the endless line is a function of the seed and i alone, so that a cursor is a number.

Training and held-out questions are told apart by a hash of the question, unless a part brings an `eval` file.  No
question may be on both sides, of any two parts: questions are compared after `normalised`.
"""

import dataclasses
import hashlib
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import grain
import numpy as np

from thinkfirst.core import digest
from thinkfirst.rl import batch
from thinkfirst.rl.data import (
    arc,
    arithmetic,
    creative,
    gsm8k,
    hotpotqa,
    humaneval,
    jsonl,
    logiqa,
    mbpp,
    mmlu,
    passrate,
    reclor,
    replay,
    samsum,
    svamp,
    xsum,
)

ANY = "any"  # the difficulty that every problem of a mix has
PLAIN_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")

Kind = Literal[
    "arc", "creative", "gsm8k", "hotpotqa", "humaneval", "jsonl", "logiqa",
    "mbpp", "mmlu", "reclor", "replay", "samsum", "svamp", "xsum",
]  # fmt: skip

READERS: dict[str, Callable[[str], list[batch.Demonstration]]] = {
    "arc": arc.read,
    "creative": creative.read,
    "gsm8k": gsm8k.read,
    "hotpotqa": hotpotqa.read,
    "humaneval": humaneval.read,
    "jsonl": jsonl.read,
    "logiqa": logiqa.read,
    "mbpp": mbpp.read,
    "mmlu": mmlu.read,
    "reclor": reclor.read,
    "replay": replay.read,
    "samsum": samsum.read,
    "svamp": svamp.read,
    "xsum": xsum.read,
}


@dataclasses.dataclass(frozen=True)
class Part:
    """`count` problems of `train` (0: all of them) and `held_out` ones of `eval`, or of `train` where that is empty.

    Both are what `rows.read` takes: a file, a folder or a name on the hub.  `difficulty` overrides that of every
    problem; `pass_rates`, a file of {"id", "pass_rate"} lines, that of every training problem.
    """

    name: str
    kind: Kind
    train: str = ""
    count: int = 0
    eval: str = ""
    held_out: int = 0
    difficulty: str = ""
    pass_rates: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"data part {self.name}: kind={self.kind!r} is none of {', '.join(get_args(Kind))}")
        if min(self.count, self.held_out) < 0:
            raise ValueError(f"data part {self.name}: {self.count=} and {self.held_out=} must not be negative")
        if self.difficulty and self.pass_rates:
            raise ValueError(f"data part {self.name}: difficulty and pass_rates contradict each other: set one")


@dataclasses.dataclass(frozen=True)
class _Sides:
    """All that the files of a part hold, before anything is chosen."""

    part: Part
    train: list[batch.Demonstration]
    held_out: list[batch.Demonstration]


class Mix:
    """The parts of a configuration as a source; `index` counts the problems of its difficulty."""

    counts_by_difficulty = True

    def __init__(self, parts: Sequence[Part], seed: int) -> None:
        if len({part.name for part in parts}) < len(parts) or not parts:
            raise ValueError(f"data.parts must have names of their own, and be some: {[part.name for part in parts]}")
        sides = [_sides(part) for part in parts]
        _refuse_shared(sides)
        self.train = _taken(sides, seed)
        self._held_out = [problem for side in sides for problem in _chosen(side)]
        problems = [row.problem for row in self.train]
        self.runs_code = any(problem.tests for problem in (*problems, *self._held_out))
        by_difficulty: dict[str, list[batch.Problem]] = {ANY: list(problems)} if problems else {}
        for problem in problems:
            if problem.difficulty == ANY:
                asked = problem.question[:120]
                raise ValueError(f"difficulty {ANY!r} is that of every problem, no row's own: {asked!r}")
            by_difficulty.setdefault(problem.difficulty, []).append(problem)
        self._sizes = {name: len(found) for name, found in by_difficulty.items()}
        self._lines = {name: endless(found, seed) for name, found in by_difficulty.items()}
        shown = [row for row in self.train if row.completion]
        self._demonstrations = endless(shown, seed) if shown else None

    def problem(self, index: int, difficulty: str) -> batch.Problem:
        """The index-th problem of the endless line of this difficulty."""
        if difficulty not in self._lines:
            raise ValueError(f"no problem of difficulty {difficulty!r} in the mix; there are {self._sizes}")
        return self._lines[difficulty][index]

    def demonstration(self, index: int) -> batch.Demonstration:
        if self._demonstrations is None:
            raise ValueError("this mix holds no worked solutions to imitate: drop the SFT stage")
        return self._demonstrations[index]

    def held_out(self) -> list[batch.Problem]:
        """The same problems whatever the seed, so that runs can be compared."""
        if not self._held_out:
            raise ValueError("this mix holds no problem to evaluate on: --set data.parts.NAME.held_out=COUNT")
        return self._held_out

    def fingerprint(self) -> str:
        return digest.of_rows([*self.train, *self._held_out])


def endless(rows: list, seed: int) -> grain.MapDataset:
    """An endless dataset, each epoch in an order of its own."""
    return grain.MapDataset.source(rows).seed(seed).shuffle().repeat()


def normalised(question: str) -> str:
    """The question as it is compared: Unicode forms, quotes, case and white space do not count."""
    plain = unicodedata.normalize("NFKC", question).translate(PLAIN_QUOTES)
    return " ".join(plain.casefold().split())


def _sides(part: Part) -> _Sides:
    """The training and the held-out side of a part, with the difficulties that it asks for."""
    if not part.train and not part.eval:
        key = f"data.parts.{part.name}"
        raise ValueError(f"{key}: neither train nor eval is set: --set {key}.train=FILE")
    read = READERS[part.kind]
    train, held_out = read(part.train) if part.train else [], read(part.eval) if part.eval else []
    for path, rows in ((part.train, train), (part.eval, held_out)):
        if path and not rows:
            raise ValueError(f"data.parts.{part.name}: {path} holds no problems")
    if not part.eval:
        is_held_out = [arithmetic.is_held_out(normalised(row.problem.question)) for row in train]
        held_out = [row for row, held in zip(train, is_held_out, strict=True) if held]
        train = [row for row, held in zip(train, is_held_out, strict=True) if not held]
    if part.difficulty:
        train, held_out = (_at(rows, lambda _: part.difficulty) for rows in (train, held_out))
    if part.pass_rates:
        measured = passrate.read(part.pass_rates)
        missing = [row.problem.id for row in train if row.problem.id not in measured]
        if missing:
            raise ValueError(
                f"{part.pass_rates}: no pass rate of {len(missing)} of the {len(train)} training problems of part "
                f"{part.name}, the first of them {missing[0]}"
            )
        train = _at(train, lambda problem: passrate.difficulty(measured[problem.id]))
    return _Sides(part, train, held_out)


def _at(rows: Iterable[batch.Demonstration], level: Callable[[batch.Problem], str]) -> list[batch.Demonstration]:
    """The rows with the difficulty that `level` gives them."""
    change = dataclasses.replace
    return [change(row, problem=change(row.problem, difficulty=level(row.problem))) for row in rows]


def _refuse_shared(sides: Sequence[_Sides]) -> None:
    """Raises for questions on both sides, of any two parts: all of the files count, not only what is taken."""
    held_out = {normalised(row.problem.question): side.part.name for side in sides for row in side.held_out}
    shared = [
        (side.part.name, held_out[key], row.problem.question)
        for side in sides
        for row in side.train
        if (key := normalised(row.problem.question)) in held_out
    ]
    if shared:
        trained, held, question = shared[0]
        raise ValueError(
            f"{len(shared)} held-out questions are also in training; the first is in part {trained} to train on and in "
            f"part {held} to evaluate on: {question[:120]!r}"
        )


def _taken(sides: Sequence[_Sides], seed: int) -> list[batch.Demonstration]:
    """Exactly `count` distinct training problems of each part, in the order of the files."""
    seen: set[str] = set()
    taken = []
    for side in sides:
        distinct = [row for row in side.train if not _known(seen, row)]
        count = side.part.count or len(distinct)
        if count > len(distinct):
            raise ValueError(
                f"data.parts.{side.part.name}.count={count}: there are {len(distinct)} distinct problems to train on "
                f"in {side.part.train or 'no file'}"
            )
        rng = np.random.default_rng([seed, zlib.crc32(side.part.name.encode())])
        taken += [distinct[place] for place in sorted(rng.permutation(len(distinct))[:count].tolist())]
    return taken


def _chosen(side: _Sides) -> list[batch.Problem]:
    """The `held_out` distinct problems with the smallest hashes: a larger number adds to a smaller one's."""
    distinct = {normalised(row.problem.question): row.problem for row in reversed(side.held_out)}
    if side.part.held_out > len(distinct):
        raise ValueError(
            f"data.parts.{side.part.name}.held_out={side.part.held_out}: there are {len(distinct)} distinct held-out "
            f"problems in {side.part.eval or side.part.train}"
        )
    ordered = sorted(distinct, key=lambda question: hashlib.sha256(question.encode()).digest())
    return [distinct[question] for question in ordered[: side.part.held_out]]


def _known(seen: set[str], row: batch.Demonstration) -> bool:
    """Whether the question was seen before; from now on it was."""
    key = normalised(row.problem.question)
    known = key in seen
    seen.add(key)
    return known
