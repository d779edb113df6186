"""Samples laid out in the rows that a train step reads: one in a row, or as many as fit.

Best fit decreasing: the longest sample first, each into the fullest row that still has room for it; that takes at most
11/9 of the fewest rows possible, and four more (Johnson et al. 1974).  Ties go to the lower number, so that equal
lengths give equal rows.

What is compiled depends on the number of rows and on the room for their completion tokens.  Both are rounded up to
eighths of what they can be at most: few shapes, few compilations.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from thinkfirst.rl import batch

SIZES = 8  # of the number of rows, and of the room in them: what a run may have to compile at most
Tokens = Sequence[int] | np.ndarray
Pair = tuple[Tokens, Tokens]  # the tokens of a prompt and of its completion


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which samples, by number, every row of `row_tokens` holds in turn; `room` completion tokens fit in a row."""

    rows: tuple[tuple[int, ...], ...]
    row_tokens: int
    room: int

    def waste(self, samples: Sequence[Pair]) -> float:
        """The share of tokens that are padding."""
        return 1.0 - sum(map(_length, samples)) / (len(self.rows) * self.row_tokens)


def one_a_row(num_samples: int, *, num_rows: int = 0, row_tokens: int, room: int) -> Plan:
    """Sample i in row i, then rows of padding up to `num_rows`."""
    empty = ((),) * max(0, num_rows - num_samples)
    return Plan((*((number,) for number in range(num_samples)), *empty), row_tokens, room)


def packed(samples: Sequence[Pair], *, row_tokens: int, num_shards: int, micro_batches: int) -> Plan:
    """As few rows as best fit finds, rounded up to equal numbers for every shard in every micro-batch.

    They are dealt out fullest first, so that no shard and no micro-batch has more of the padding than another.  A
    sample without tokens is in no row.
    """
    lengths = list(map(_length, samples))
    if max(lengths, default=0) > row_tokens:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit in a row of {row_tokens}")
    free_B, rows = np.full(len(samples), row_tokens), [list[int]() for _ in samples]
    for number in sorted(range(len(samples)), key=lambda number: -lengths[number]):
        if lengths[number]:
            fullest = int(np.where(free_B >= lengths[number], free_B, row_tokens + 1).argmin())
            rows[fullest].append(number)
            free_B[fullest] -= lengths[number]
    parts = num_shards * micro_batches
    count = _rounded(sum(map(bool, rows)), most=len(samples), multiple=parts)
    rows = [*rows, *[[]] * count]
    fullest_first = sorted(range(count), key=lambda row: sum(lengths[number] for number in rows[row]), reverse=True)
    dealt = np.array(fullest_first).reshape(-1, num_shards, micro_batches).swapaxes(0, 1).reshape(-1)
    learnt = max(sum(_learnt(samples[number]) for number in row) for row in rows)
    room = min(_rounded(learnt, most=row_tokens, multiple=1), row_tokens)
    return Plan(tuple(tuple(sorted(rows[row])) for row in dealt), row_tokens, room)


def planned(
    samples: Sequence[Pair], unpacked: Plan, *, row_tokens: int, num_shards: int, micro_batches: int
) -> tuple[Plan, dict[str, float]]:
    """(`unpacked`, or where `row_tokens` says so the samples packed in rows of as many, metrics of the padding)."""
    chosen = unpacked
    if row_tokens:
        chosen = packed(samples, row_tokens=row_tokens, num_shards=num_shards, micro_batches=micro_batches)
    return chosen, {
        "learner/rows": float(len(chosen.rows)),
        "learner/padding_waste": chosen.waste(samples),
        "learner/padding_waste_unpacked": unpacked.waste(samples),
    }


def lay_out(samples: Sequence[Pair], plan: Plan) -> batch.Rows:
    """The tokens of the samples in the rows of the plan, as host arrays."""
    tokens_BT, segment_BT = (np.zeros((len(plan.rows), plan.row_tokens), np.int32) for _ in range(2))
    column_BT = np.zeros((len(plan.rows), plan.room), np.int32)
    for row, numbers in enumerate(plan.rows):
        begin = known = 0
        for number in numbers:
            prompt, completion = samples[number]
            middle, end, learnt = begin + len(prompt), begin + _length(samples[number]), _learnt(samples[number])
            if end > plan.row_tokens or known + learnt > plan.room:
                tokens = f"{len(prompt)} tokens of prompt and {len(completion)} of completion"
                raise ValueError(f"sample {number}: {tokens} exceed what is left of a row of {plan.row_tokens}")
            tokens_BT[row, begin:middle], tokens_BT[row, middle:end] = prompt, completion
            segment_BT[row, begin:end] = number + 1
            column_BT[row, known : known + learnt] = np.arange(end - learnt, end)
            begin, known = end, known + learnt
    return batch.Rows(tokens_BT=tokens_BT, segment_BT=segment_BT, column_BT=column_BT)


def experience(samples: Sequence[batch.Sample], plan: Plan, *, truncated: bool = True) -> batch.Experience:
    """What the learner reads of samples, in the rows of the plan, as host arrays.

    The caller who knows that no token could be dropped (`Sampling.truncated`) spares the learner the floors.
    """
    pairs: list[Pair] = [(sample.prompt, sample.completion) for sample in samples]

    def beside(known: Sequence[Float[np.ndarray, "_"]], fill: float = 0.0) -> Float[np.ndarray, "B T"]:
        """Values of the samples' completion tokens, laid out as those are."""
        value_BT = np.full((len(plan.rows), plan.room), fill, np.float32)
        for row, numbers in enumerate(plan.rows):
            if numbers:
                values = np.concatenate([known[number][_unpredicted(pairs[number]) :] for number in numbers])
                value_BT[row, : len(values)] = values
        return value_BT

    return batch.Experience(
        rows=lay_out(pairs, plan),
        old_logp_BT=beside([sample.logp for sample in samples]),
        floor_BT=beside([sample.floor for sample in samples], -np.inf) if truncated else None,
        advantage_BT=beside([np.full(len(sample.completion), sample.advantage) for sample in samples]),
    )


def _rounded(count: int, *, most: int, multiple: int) -> int:
    """`count` rounded up to whole eighths of `most`, which are multiples of `multiple`; never 0."""
    step = multiple * max(1, -(-most // (SIZES * multiple)))
    return max(1, -(-count // step)) * step


def _length(sample: Pair) -> int:
    return len(sample[0]) + len(sample[1])


def _unpredicted(sample: Pair) -> int:
    """1 where the completion has nothing before it to predict its first token from, else 0."""
    return int(not len(sample[0]) and len(sample[1]) > 0)


def _learnt(sample: Pair) -> int:
    """Completion tokens with a log-prob."""
    return len(sample[1]) - _unpredicted(sample)
