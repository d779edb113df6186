"""Whether the policy was as sure of its answer as it should have been: a proper score of its own probabilities.

c is the geometric mean of the probabilities of the answer's tokens, so a long answer is no less sure than a short one.
The quadratic rule (G. W. Brier, Verification of forecasts expressed in terms of probability, 1950, shifted by a
constant that depends on the outcome only) pays

    right: 1 - (1 - c)^2        wrong: -c^2

so that an answer right with probability p expects 2 p c - c^2: largest at c = p, where it is p^2 >= 0.

A completion that is not well formed scores -1, as if sure and wrong.  Were it 0, breaking the format would be the way
out of every wrong answer that the policy is sure of: with the weights at the end of the annealing a confident wrong
answer with a full trace has 0.25 * 0.5 - 0.15 < 0.
"""

import math

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import correctness, fault, parse


def score(completion: batch.Completion, problem: batch.Problem) -> float:
    """Calibration of the answer, in [-1, 1]: at least 0 when right, at most 0 when wrong."""
    if len(completion.logp) != len(completion.spans):
        raise ValueError(f"confidence: {len(completion.logp)} log-probs for {len(completion.spans)} tokens")
    for index, logp in enumerate(completion.logp):
        if not math.isfinite(logp):
            raise fault.NotFinite(f"confidence: log-prob of token {index} is {logp}")
    parsed = parse.parse(completion)
    if not parsed.well_formed:
        return -1.0
    tokens = parse.tokens_in(completion, parsed.answer_span)
    if not tokens:
        raise ValueError(f"confidence: no token covers the answer {parsed.answer!r} at {parsed.answer_span}")
    return quadratic(
        certainty([completion.logp[token] for token in tokens]), right=bool(correctness.score(completion, problem))
    )


def certainty(logp: list[float]) -> float:
    """Geometric mean of the tokens' probabilities; a mean above 0 is rounding and counts as 0."""
    return math.exp(min(0.0, math.fsum(logp) / len(logp)))


def quadratic(c: float, *, right: bool) -> float:
    """Brier's rule for a stated probability `c` of being right."""
    return 1 - (1 - c) ** 2 if right else -(c**2)
