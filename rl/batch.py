"""The nouns of a step: Problem -> Prompts -> Rollout -> Completion -> Sample -> Experience.

Host-side nouns (`Problem`, `Demonstration`, `Completion`, `Sample`) are frozen dataclasses of plain Python values;
device-side nouns (`Prompts`, `Sampling`, `Rollout`, `Rows`, `Experience`) are pytrees of arrays.
"""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

LENGTH_BUCKET = 64  # rows are padded to a multiple of this many tokens: few shapes, few compilations
AnyArray = jax.Array | np.ndarray  # on a device or still on the host
AnyScalar = jax.Array | np.number  # likewise


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with a checkable answer.  It never carries a worked solution."""

    id: str
    question: str
    answer: str
    domain: str = "math"
    choices: tuple[str, ...] = ()
    difficulty: str = "medium"
    tests: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A problem with a completion to imitate: what SFT reads, and GRPO never does."""

    problem: Problem
    completion: str


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled answer as the rewards see it.

    `spans[i]` is the half-open range of characters of `text` that token i wrote, `logp[i]` its log-probability (nats)
    under the distribution it was sampled from.  The stop token is in neither; `stopped` tells whether there was one.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    logp: tuple[float, ...]
    stopped: bool = True


@flax.struct.dataclass
class Prompts:
    """Tokenised prompts, right-padded.  `id_P` is a stable 32-bit hash of the problem: it seeds the sampling."""

    tokens_PT: Int[AnyArray, "P T"]
    length_P: Int[AnyArray, "P"]
    id_P: UInt[AnyArray, "P"]


@flax.struct.dataclass
class Sampling:
    """Sampler settings as data, never as shapes: changing one recompiles nothing.

    temperature 0 is greedy (log-probs are then those of temperature 1); top_k 0, top_p 1 and min_p 0 keep the whole
    vocabulary.  min_p drops what is less than min_p times as likely as the likeliest token.  max_new_tokens is a limit
    for all rows, or one for each.
    """

    temperature: Float[AnyScalar, ""]
    top_k: Int[AnyScalar, ""]
    top_p: Float[AnyScalar, ""]
    min_p: Float[AnyScalar, ""]
    max_new_tokens: Int[AnyScalar, ""] | Int[AnyArray, "B"]

    @classmethod
    def of(
        cls,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        max_new_tokens: int,
    ) -> "Sampling":
        if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or not 0 <= min_p <= 1 or max_new_tokens < 1:
            raise ValueError(f"bad sampler setting: {temperature=} {top_k=} {top_p=} {min_p=} {max_new_tokens=}")
        return cls(
            temperature=np.float32(temperature),
            top_k=np.int32(top_k),
            top_p=np.float32(top_p),
            min_p=np.float32(min_p),
            max_new_tokens=np.int32(max_new_tokens),
        )

    @property
    def truncated(self) -> bool:
        """Whether a token may be dropped; to be asked while the settings are on the host."""
        return bool(self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0))


@flax.struct.dataclass
class Rollout:
    """Sampled completions, right-padded, the stop token included.

    `floor_BT` is the log-probability (temperature applied, nothing cut off) below which top-k, top-p or min-p dropped
    a token when this one was drawn, -inf where nothing was dropped: with it the learner rebuilds the sampled
    distribution.
    """

    tokens_BT: Int[AnyArray, "B T"]
    logp_BT: Float[AnyArray, "B T"]
    floor_BT: Float[AnyArray, "B T"]
    length_B: Int[AnyArray, "B"]
    stopped_B: Bool[AnyArray, "B"]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt and what was sampled after it; `logp` and `floor` are the rollout's, one for each completion token."""

    prompt: Sequence[int]
    completion: Int[np.ndarray, "_"]
    logp: Float[np.ndarray, "_"]
    floor: Float[np.ndarray, "_"]
    advantage: float


@flax.struct.dataclass
class Rows:
    """Rows of tokens, in each one sample or several (prompt, then completion), then padding: what is trained on.

    `segment_BT` is 1 + the number of the sample that a token belongs to, 0 where it is padding; a sample is one run of
    a row.  `column_BT` runs over the row's completion tokens alone: the column of each, in turn, then 0.  (The first
    token of a row is never one of them: nothing predicts it.)  `rl/packing.py` makes them.
    """

    tokens_BT: Int[AnyArray, "B T"]
    segment_BT: Int[AnyArray, "B T"]
    column_BT: Int[AnyArray, "B T"]

    @property
    def mask_BT(self) -> Bool[Array, "B T"]:
        """Where there is a completion token."""
        return jnp.asarray(self.column_BT) > 0

    @property
    def completion_BT(self) -> Int[Array, "B T"]:
        """The completion tokens."""
        return jnp.take_along_axis(jnp.asarray(self.tokens_BT), jnp.asarray(self.column_BT), axis=1)

    @property
    def sample_BT(self) -> Int[Array, "B T"]:
        """1 + the number of the sample of every completion token, 0 where there is none."""
        segment_BT = jnp.take_along_axis(jnp.asarray(self.segment_BT), jnp.asarray(self.column_BT), axis=1)
        return jnp.where(self.mask_BT, segment_BT, 0)

    @property
    def num_samples(self) -> Int[Array, ""]:
        """How many samples there are, those without completion tokens included."""
        segment_BT = jnp.asarray(self.segment_BT)
        before_BT = jnp.pad(segment_BT[:, :-1], ((0, 0), (1, 0)))
        return ((segment_BT != before_BT) & (segment_BT > 0)).sum()


@flax.struct.dataclass
class Experience:
    """What the learner reads: rows, and beside `rows.column_BT` what is known of each completion token.

    `old_logp_BT` is the policy that the trust region is around, `sampler_logp_BT` what the engine sampled from, None
    where that is the same.  `floor_BT` is that of the rollout, None where no token could be dropped.  A sample's
    advantage stands at each of its tokens.
    """

    rows: Rows
    old_logp_BT: Float[AnyArray, "B T"]
    floor_BT: Float[AnyArray, "B T"] | None
    advantage_BT: Float[AnyArray, "B T"]
    sampler_logp_BT: Float[AnyArray, "B T"] | None = None


def pad_prompts(rows: Sequence[Sequence[int]], ids: Sequence[int], width: int) -> Prompts:
    """Token rows side by side as host arrays of `width` columns; `ids` seed their sampling."""
    tokens_PT = np.zeros((len(rows), width), np.int32)
    for row_T, row in zip(tokens_PT, rows, strict=True):
        row_T[: len(row)] = row
    length_P = np.array([len(row) for row in rows], np.int32)
    return Prompts(tokens_PT=tokens_PT, length_P=length_P, id_P=np.array(ids, np.uint32))


def bucket(length: int) -> int:
    """`length` rounded up to whole buckets."""
    return -(-length // LENGTH_BUCKET) * LENGTH_BUCKET


def wide_bucket(length: int) -> int:
    """`length` rounded up to a bucket times a power of two."""
    return LENGTH_BUCKET << max(0, -(-length // LENGTH_BUCKET) - 1).bit_length()


def length_mask(length_B: Int[AnyArray, "B"], num_tokens: int) -> Bool[Array, "B T"]:
    """True on the first `length` columns of each row: masks come from lengths, never from token ids."""
    return jnp.arange(num_tokens)[None, :] < length_B[:, None]


def samples(prompts: Sequence[Sequence[int]], rollout: Rollout, advantage_B: Float[AnyArray, "B"]) -> list[Sample]:
    """The rows of a rollout with their prompts, each of which was continued for G rows; all on the host."""
    group = len(rollout.length_B) // len(prompts) if len(prompts) else 0
    return [
        Sample(
            prompt=prompts[row // group],
            completion=np.asarray(rollout.tokens_BT[row, :length]),
            logp=np.asarray(rollout.logp_BT[row, :length]),
            floor=np.asarray(rollout.floor_BT[row, :length]),
            advantage=float(advantage_B[row]),
        )
        for row, length in enumerate(rollout.length_B)
    ]


def without_stop(samples: Sequence[Sample], stopped_B: Bool[np.ndarray, "B"]) -> list[Sample]:
    """Samples whose stop token is neither learnt nor counted: the policy is never told to end, nor not to."""
    return [
        dataclasses.replace(
            sample, completion=sample.completion[:-1], logp=sample.logp[:-1], floor=sample.floor[:-1]
        )
        if stopped and len(sample.completion)
        else sample
        for sample, stopped in zip(samples, stopped_B, strict=True)
    ]


def unpadded(prompts: Prompts) -> list[list[int]]:
    """The tokens of each prompt."""
    return [tokens_T[:length].tolist() for tokens_T, length in zip(prompts.tokens_PT, prompts.length_P, strict=True)]
