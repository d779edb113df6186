"""The reward of the show_work pipeline.

    R = w_trace * trace * (1 if correct else 1/2) + w_correctness * correctness + w_confidence * confidence
        - w_verbosity * verbosity

Style is what a policy finds first, so its worth depends on being right.  A correct completion has at least
w_correctness - w_verbosity (no trace, no confidence, full penalty); a wrong one at most w_trace / 2 (full trace, a
confidence near 0, no penalty); one that is not well formed at most -w_confidence.  Whenever `margin` is positive no
wrong completion can outscore a right one: it is .125 at weights .45/.40/.15/.05 and .425 at .25/.60/.15/.05.  Without
the 1/2 it would be -.10 at the first.
"""

import dataclasses
import math
from collections.abc import Callable

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import confidence, correctness, fault, parse, reward, trace, verbosity

# The share of the trace's reward that a wrong answer keeps: enough to learn the format from, too little to live on.
WRONG_TRACE_CREDIT = 0.5


@dataclasses.dataclass(frozen=True)
class RewardWeights:
    """What each part is worth; `verbosity` is subtracted."""

    trace: float = 0.45
    correctness: float = 0.40
    confidence: float = 0.15
    verbosity: float = 0.05

    def __post_init__(self) -> None:
        reward.check_weights(dataclasses.asdict(self))


Graded = reward.Graded


def grade(completion: batch.Completion, problem: batch.Problem, weights: RewardWeights) -> Graded:
    """The reward of one completion.  A part that is not finite raises: it must not erase the others in silence.

    `format` (1 or 0) has no weight and is for the log.
    """
    parsed = parse.parse(completion)
    parts = {
        "format": float(parsed.well_formed),
        "trace": trace.score(completion, problem),
        "correctness": correctness.score(completion, problem),
        "confidence": confidence.score(completion, problem),
        "verbosity": verbosity.score(completion, problem),
    }
    for name, value in parts.items():
        if not math.isfinite(value):
            raise fault.NotFinite(f"reward part {name} of problem {problem.id!r} is {value}")
    return Graded(combine(parts, weights), parts, parsed, parse.strict_answer(parsed))


def grade_text(completion: batch.Completion, problem: batch.Problem, weights: RewardWeights) -> Graded:
    """The reward of a completion of which the tokens or their log-probs are not known.

    What needs them is None and adds nothing to the total.  A broken format costs what it always costs.
    """
    parsed = parse.parse(completion)
    scores = {
        "format": float(parsed.well_formed),
        "trace": trace.score(completion, problem),
        "correctness": correctness.score(completion, problem),
        "confidence": 0.0 if parsed.well_formed else -1.0,
        "verbosity": verbosity.score(completion, problem),
    }
    unknown = set() if reward.has_tokens(completion) else {"verbosity"}
    unknown |= {"confidence"} if parsed.well_formed else set()
    parts = {name: None if name in unknown else value for name, value in scores.items()}
    return Graded(combine(scores, weights), parts, parsed, parse.strict_answer(parsed))


def make(weights_at: Callable[[int], RewardWeights]) -> reward.Reward:
    """The reward of the pipeline at any step, with the weights of that step."""

    def graded(completion: batch.Completion, problem: batch.Problem, *, step: int, phase: str) -> Graded:
        del phase
        return grade(completion, problem, weights_at(step))

    return graded


def combine(parts: dict[str, float], weights: RewardWeights) -> float:
    """The reward that raw scores are worth."""
    trace_credit = 1.0 if parts["correctness"] else WRONG_TRACE_CREDIT
    return (
        weights.trace * parts["trace"] * trace_credit
        + weights.correctness * parts["correctness"]
        + weights.confidence * parts["confidence"]
        - weights.verbosity * parts["verbosity"]
    )


def margin(weights: RewardWeights) -> float:
    """By how much the worst correct completion is sure to beat the best wrong one; negative when it is not."""
    return weights.correctness - weights.verbosity - WRONG_TRACE_CREDIT * weights.trace
