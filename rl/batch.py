"""The nouns of a step: Problem -> Prompts -> Rollout -> Completion -> Experience.

Host-side nouns (`Problem`, `Demonstration`, `Completion`) are frozen dataclasses of plain Python values; device-side
nouns (`Prompts`, `Sampling`, `Rollout`, `Experience`) are pytrees of arrays.
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


@flax.struct.dataclass
class Sequences:
    """Prompt and completion of each row, right-padded: what SFT and pre-training read."""

    tokens_BT: Int[AnyArray, "B T"]
    prompt_length_B: Int[AnyArray, "B"]
    length_B: Int[AnyArray, "B"]


@flax.struct.dataclass
class Experience:
    """What the learner reads: whole sequences (prompt, then completion, then padding) and what is known of them.

    `completion_*` arrays run over the completion only; its first token stands at column `prompt_length_B` of
    `tokens_BT`.  A row without a prompt is padding, and is not counted as a row anywhere.

    `old_logp_BT` is the policy that the trust region is around, `sampler_logp_BT` what the engine sampled from, None
    where that is the same.  `floor_BT` is that of the rollout, None where no token could be dropped.
    """

    tokens_BT: Int[AnyArray, "B T"]
    prompt_length_B: Int[AnyArray, "B"]
    completion_BT: Int[AnyArray, "B T"]
    completion_length_B: Int[AnyArray, "B"]
    old_logp_BT: Float[AnyArray, "B T"]
    floor_BT: Float[AnyArray, "B T"] | None
    advantage_B: Float[AnyArray, "B"]
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


def join(
    prompt_BT: Int[AnyArray, "B T"],
    prompt_length_B: Int[AnyArray, "B"],
    completion: Int[AnyArray, "B _"],
    completion_length_B: Int[AnyArray, "B"],
) -> Int[np.ndarray, "B _"]:
    """Prompt and completion of each row without a gap between them, zeros after, as wide as both together."""
    width = prompt_BT.shape[1] + completion.shape[1]
    column_T = np.arange(width)[None, :]
    from_prompt = np.take_along_axis(prompt_BT, np.minimum(column_T, prompt_BT.shape[1] - 1), axis=1)
    offset_BT = np.clip(column_T - prompt_length_B[:, None], 0, completion.shape[1] - 1)
    from_completion = np.take_along_axis(completion, offset_BT, axis=1)
    joined_BT = np.where(column_T < prompt_length_B[:, None], from_prompt, from_completion)
    return np.where(column_T < (prompt_length_B + completion_length_B)[:, None], joined_BT, 0)


def experience(
    prompts: Prompts, rollout: Rollout, advantage_B: Float[AnyArray, "B"], *, truncated: bool = True
) -> Experience:
    """The learner's view of a rollout, all on the host; prompts are repeated for the G samples of each group.

    The caller who knows that no token could be dropped (`Sampling.truncated`) spares the learner the floors.
    """
    group = rollout.tokens_BT.shape[0] // prompts.tokens_PT.shape[0]
    prompt_BT = np.repeat(prompts.tokens_PT, group, axis=0)
    prompt_length_B = np.repeat(prompts.length_P, group)
    return Experience(
        tokens_BT=join(prompt_BT, prompt_length_B, rollout.tokens_BT, rollout.length_B),
        prompt_length_B=prompt_length_B,
        completion_BT=rollout.tokens_BT,
        completion_length_B=rollout.length_B,
        old_logp_BT=rollout.logp_BT,
        floor_BT=rollout.floor_BT if truncated else None,
        advantage_B=np.asarray(advantage_B, np.float32),
    )


def without_stop(rows: Experience, stopped_B: Bool[np.ndarray, "B"]) -> Experience:
    """Rows whose stop token is neither learnt nor counted: the policy is never told to end, nor not to."""
    return dataclasses.replace(rows, completion_length_B=np.asarray(rows.completion_length_B) - stopped_B)
