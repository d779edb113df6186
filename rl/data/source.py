"""Where problems come from: one interface, one class per kind of data, every item a pure function of its index."""

import dataclasses
import pathlib
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from thinkfirst.core import digest
from thinkfirst.rl import batch
from thinkfirst.rl.data import arithmetic, author, gsm8k, jsonl, mix, rows, small_world

DRILL_LENGTH = 4
PRINTED = 60  # generated rows in a fingerprint
REPEAT_SHARE = 0.15
MARKUP_TAGS = ("b", "i", "p", "em")
MARKUP_WORDS = ("reasoning", "answer", "Step 4: 7.", "Step 5.", "25", "30.", "pens")

Kind = Literal[
    "arithmetic", "arithmetic_drill", "arithmetic_plain", "small_world", "small_world_open", "gsm8k", "jsonl", "mix"
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """`train` and `eval` are files of the kinds that have any; a mix has `parts`, which say all there is to say.

    Of a mix, `use` names the parts to take (none: all of them); their files lie in `folder`, unless a part's path is
    absolute or on the hub.
    Of the built-in problems, `slip_share` is the share of traces with a slip; `long` scales that of three-step ones.
    """

    kind: Kind = "arithmetic"
    train: str = ""
    eval: str = ""
    parts: tuple[mix.Part, ...] = ()
    use: tuple[str, ...] = ()
    folder: str = ""
    held_out: int = 120
    slip_share: float = 0.55
    long: float = 1.0


@runtime_checkable
class Source(Protocol):
    """Endless problems and demonstrations by index, and a fixed list of held-out problems.

    `problem` is asked with the number of the problem among all of the stage, or among those of its difficulty.
    `runs_code` tells whether programs answer some of the problems, which somebody has to run.
    """

    counts_by_difficulty: bool
    runs_code: bool

    def problem(self, index: int, difficulty: str) -> batch.Problem: ...

    def demonstration(self, index: int) -> batch.Demonstration: ...

    def held_out(self) -> list[batch.Problem]: ...

    def fingerprint(self) -> str:
        """A digest of every row there is, on both sides, in their order: a cursor means nothing among other rows."""
        ...


class Arithmetic:
    """The built-in generator.  SFT, GRPO and pre-training draw from different seeds."""

    counts_by_difficulty = False
    runs_code = False

    def __init__(self, config: DataConfig, seed: int) -> None:
        if not 0 <= config.slip_share <= 1:
            raise ValueError(f"slip_share {config.slip_share} is not a share")
        if not 0 <= config.long <= 2:
            raise ValueError(f"long {config.long} must lie in 0..2")
        self._config, self._seed = config, seed
        self._each = _share(config.held_out, len(arithmetic.DIFFICULTIES), "difficulties")

    def problem(self, index: int, difficulty: str) -> batch.Problem:
        return arithmetic.problem(3 * self._seed, index, difficulty, long=self._config.long)

    def demonstration(self, index: int) -> batch.Demonstration:
        """A trace with the author's slips in `slip_share` of cases."""
        worked, rng = self._drawn(index, stream=1)
        if rng.random() < self._config.slip_share:
            lines = author.slipped(worked.steps, rng, largest=arithmetic.LARGEST)
        else:
            lines = author.equations(worked.steps)
        return batch.Demonstration(worked.problem, author.write_trace(lines))

    def held_out(self) -> list[batch.Problem]:
        """The same problems whatever the seed, so that runs can be compared."""
        return arithmetic.held_out(0, self._each, long=self._config.long)

    def fingerprint(self) -> str:
        """That of the first few: all are made by the same code."""
        few = range(PRINTED)
        asked = [self.problem(index, arithmetic.DIFFICULTIES[index % 3]) for index in few]
        return digest.of_rows([*asked, *map(self.demonstration, few), *self.held_out()])

    def _drawn(self, index: int, *, stream: int) -> tuple[arithmetic.Worked, np.random.Generator]:
        """Problem `index` of a stream (GRPO has 0, SFT 1, pre-training 2), and randomness for how it is written."""
        seed = 3 * self._seed + stream
        worked = arithmetic.worked(seed, index, arithmetic.DIFFICULTIES[index % 3], long=self._config.long)
        return worked, np.random.default_rng([seed, index, 99])


class DrillArithmetic(Arithmetic):
    """What the base model learns to reckon from: a few sums in a row, as at school."""

    def demonstration(self, index: int) -> batch.Demonstration:
        sums = tuple(arithmetic.sums(3 * self._seed + 2, index, DRILL_LENGTH))
        lines = author.equations(sums)
        asked = ", ".join(f"{left}{operator}{right}" for left, operator, right, _ in lines)
        drill = batch.Problem(id=f"drill {index}", question=asked, answer=str(lines[-1][3]))
        return batch.Demonstration(drill, author.write_row(lines))


class PlainArithmetic(Arithmetic):
    """What the base model learns to write from: the same kinds of questions, answered right and without tags.

    Half of the answers come in a row, half as a list.  Now and then it is given a bit of markup to repeat: there it
    meets the brackets and words of the later format, as a real one meets them on the web.
    """

    def demonstration(self, index: int) -> batch.Demonstration:
        worked, rng = self._drawn(index, stream=2)
        if rng.random() < REPEAT_SHARE:
            markup = _markup(rng)
            return batch.Demonstration(batch.Problem(f"repeat {index}", f"Repeat: {markup}", markup), markup)
        write = author.write_plain if rng.random() < 0.5 else author.write_list
        return batch.Demonstration(worked.problem, write(author.equations(worked.steps)))


def _markup(rng: np.random.Generator) -> str:
    """Two elements side by side: <b>Step 4: 7.</b><i>answer</i>."""
    tags, words = rng.choice(MARKUP_TAGS, size=2), rng.choice(MARKUP_WORDS, size=2)
    return "".join(f"<{tag}>{word}</{tag}>" for tag, word in zip(tags, words, strict=True))


class SmallWorld:
    """Five domains for a tiny model (small_world.py): `domains` in turn, and held-out problems of all of them."""

    counts_by_difficulty = False
    runs_code = True

    def __init__(self, config: DataConfig, seed: int, domains: tuple[str, ...]) -> None:
        if not 0 <= config.slip_share <= 1:
            raise ValueError(f"slip_share {config.slip_share} is not a share")
        self._config, self._seed, self._domains = config, seed, domains
        self._each = _share(config.held_out, len(small_world.DOMAINS), "domains")

    def problem(self, index: int, difficulty: str) -> batch.Problem:
        return small_world.problem(2 * self._seed, index, self._domains[index % len(self._domains)], difficulty)

    def demonstration(self, index: int) -> batch.Demonstration:
        """A trace, with a slip of its author in `slip_share` of cases; GRPO draws from another seed."""
        seed = 2 * self._seed + 1
        slips = bool(np.random.default_rng([seed, index, 99]).random() < self._config.slip_share)
        domain, level = self._domains[index % len(self._domains)], arithmetic.DIFFICULTIES[index % 3]
        return small_world.worked(seed, index, domain, level, slips=slips)

    def held_out(self) -> list[batch.Problem]:
        """The same problems whatever the seed, so that runs can be compared."""
        return small_world.held_out(self._each)

    def fingerprint(self) -> str:
        """That of the first few: all are made by the same code."""
        few = range(PRINTED)
        asked = [self.problem(index, arithmetic.DIFFICULTIES[index % 3]) for index in few]
        return digest.of_rows([*asked, *map(self.demonstration, few), *self.held_out()])


def _share(held_out: int, kinds: int, of: str) -> int:
    """How many held-out problems each kind has; ValueError if there is none of some."""
    if held_out < kinds:
        raise ValueError(f"data.held_out={held_out} leaves some of the {kinds} {of} without a problem to evaluate on")
    return held_out // kinds


class Files:
    """Problems read from files, shuffled anew every epoch; held-out problems may not occur in training."""

    counts_by_difficulty = False

    def __init__(
        self, train: list[batch.Demonstration], held_out: list[batch.Problem], *, seed: int, limit: int, name: str
    ) -> None:
        shared = {row.problem.question for row in train} & {problem.question for problem in held_out}
        if shared:
            raise ValueError(f"{name}: {len(shared)} held-out questions are also in training: {min(shared)[:80]!r}")
        if not train or not held_out:
            raise ValueError(f"{name}: no problems in the {'training' if not train else 'held-out'} file")
        self._held_out = held_out[:limit]
        self._fingerprint = digest.of_rows([*train, *self._held_out])
        self.runs_code = any(problem.tests for problem in (*self._held_out, *(row.problem for row in train)))
        shown = [row for row in train if row.completion]
        self._demonstrations = mix.endless(shown, seed) if shown else None
        levels = arithmetic.DIFFICULTIES
        by_difficulty = {level: [row.problem for row in train if row.problem.difficulty == level] for level in levels}
        self._problems = {level: mix.endless(rows, seed) for level, rows in by_difficulty.items() if rows}
        self._any = mix.endless([row.problem for row in train], seed)

    def problem(self, index: int, difficulty: str) -> batch.Problem:
        return self._problems.get(difficulty, self._any)[index]

    def demonstration(self, index: int) -> batch.Demonstration:
        if self._demonstrations is None:
            raise ValueError("these files hold no worked solutions to imitate: drop the SFT stage")
        return self._demonstrations[index]

    def held_out(self) -> list[batch.Problem]:
        return self._held_out

    def fingerprint(self) -> str:
        return self._fingerprint


def make(config: DataConfig, seed: int) -> Source:
    """The source a configuration asks for."""
    if config.kind == "mix":
        return mix.Mix(_parts(config), seed)
    if config.parts:
        raise ValueError(f"data.kind={config.kind} has no parts: set data.kind=mix, or leave them out")
    if config.kind in ("small_world", "small_world_open"):
        return SmallWorld(config, seed, small_world.OPEN if config.kind.endswith("open") else small_world.CHECKED)
    generators = {
        "arithmetic": Arithmetic,
        "arithmetic_drill": DrillArithmetic,
        "arithmetic_plain": PlainArithmetic,
    }
    if config.kind in generators:
        return generators[config.kind](config, seed)
    for name, path in (("data.train", config.train), ("data.eval", config.eval)):
        if not path:
            raise ValueError(f"{name} is not set: --set {name}=FILE")
        if not path.startswith(rows.HUB) and not pathlib.Path(path).is_file():
            raise ValueError(f"{name}={path}: no such file")
    read = gsm8k.read if config.kind == "gsm8k" else jsonl.read
    held_out = [row.problem for row in read(config.eval)]
    return Files(read(config.train), held_out, seed=seed, limit=config.held_out, name=config.train)


def _parts(config: DataConfig) -> list[mix.Part]:
    """The parts to take, each with its files where they lie."""
    names = [part.name for part in config.parts]
    if unknown := [name for name in config.use if name not in names]:
        raise ValueError(f"data.use={unknown[0]}: the mix has the parts {', '.join(names)}")
    here = lambda path: path if not path or path.startswith(rows.HUB) else str(pathlib.Path(config.folder, path))  # noqa: E731
    return [
        dataclasses.replace(part, train=here(part.train), eval=here(part.eval), pass_rates=here(part.pass_rates))
        for part in config.parts
        if not config.use or part.name in config.use
    ]


def corpus(seed: int, size: int = 3000) -> list[str]:
    """Text to make the demo's tokenizer from: the chat's role lines, questions, plain answers and traces."""
    config = DataConfig()
    sources = (PlainArithmetic(config, seed), Arithmetic(config, seed))
    shown = [source.demonstration(index) for source in sources for index in range(size)]
    roles = ["user\n", "model\n"] * (size // 50)
    return roles + [text for row in shown for text in (row.problem.question, row.completion)]
