"""The reward of the think_first pipeline.

    merit = correctness, or the rubric's score where there is no single answer
    style = w_structure * structure + w_format * format + w_near * format_near

    with an answer      R = w_merit * merit + anneal * credit * style - w_verbosity * verbosity
    without             R = w_near * (format_near - 1) - w_format - w_verbosity * verbosity

`credit` is 1 for a right answer and 1/2 for any other; for a text without a single right answer it is the rubric's
score.  So style counts only with an answer that could be parsed, and pays for being right.  A right answer has at least
w_merit - w_verbosity; one that is half right (a span that only overlaps) at most (w_merit + all style) / 2: `margin` is
the difference, .10 at the default weights.  What has no answer is below whatever has one as long as w_format exceeds
w_verbosity.

Where correctness is None there is nothing to judge by, and the total is None: a program that nobody ran earns nothing
for its looks, and its sample takes no part in the update.
"""

import dataclasses
from collections.abc import Callable, Mapping

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import domains, parse, program, reward, rubric, sections, verbosity

WRONG_STYLE_CREDIT = 0.5
FREE_TOKENS = 600  # four sections take more room than show_work's steps


@dataclasses.dataclass(frozen=True)
class Weights:
    """What each part is worth in one domain; `verbosity` is subtracted."""

    merit: float = 0.60
    structure: float = 0.15
    format: float = 0.10
    near: float = 0.05
    verbosity: float = 0.05

    def __post_init__(self) -> None:
        reward.check_weights(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Judges:
    """What only the caller can provide: who runs programs, and who reads texts.  Without them both stay unjudged."""

    code: program.Judge | None = None
    text: rubric.Judge | None = None


NO_JUDGES = Judges()


def make(
    weights: Mapping[domains.Kind, Weights], judges: Judges, *, anneal_at: Callable[[int], float] = lambda step: 1.0
) -> reward.Reward:
    """The reward of the pipeline at any step, with the weights of each domain."""

    def graded(completion: batch.Completion, problem: batch.Problem, *, step: int, phase: str) -> reward.Graded:
        del phase
        return grade(completion, problem, weights[domains.kind(problem)], judges, anneal=anneal_at(step))

    return graded


def grade(
    completion: batch.Completion, problem: batch.Problem, weights: Weights, judges: Judges, *, anneal: float = 1.0
) -> reward.Graded:
    """The reward of one completion, its style worth `anneal` of its weights."""
    parsed = parse.parse(completion)
    answer = domains.extracted(parse.strict_answer(parsed), problem)
    parts: dict[str, float | None] = {
        "structure": sections.score(completion, problem),
        "format": sections.exact(completion, problem),
        "format_near": sections.approximate(completion),
        "correctness": domains.correctness(answer, problem, judges.code),
        "verbosity": None,
    }
    if reward.has_tokens(completion):
        parts["verbosity"] = verbosity.score(completion, problem, free_tokens=FREE_TOKENS)
    if domains.kind(problem) == "open":
        items = rubric.parts(answer, problem, judges.text)
        parts["rubric"] = rubric.combine(items)
        parts |= {f"rubric_{name}": value for name, value in items.items()}
    total = combine(parts, weights, has_answer=answer is not None, anneal=anneal)
    return reward.Graded(total, parts, parsed, answer)


def combine(
    parts: dict[str, float | None], weights: Weights, *, has_answer: bool, anneal: float = 1.0
) -> float | None:
    """The reward that raw scores are worth; None when nobody could say how good the answer is."""
    length = weights.verbosity * (parts["verbosity"] or 0.0)
    near = _known(parts["format_near"])
    if not has_answer:
        return weights.near * (near - 1) - weights.format - length
    merit = parts["rubric"] if "rubric" in parts else parts["correctness"]
    if merit is None:
        return None
    style = weights.structure * _known(parts["structure"]) + weights.format * _known(parts["format"])
    style += weights.near * near
    credit = merit if "rubric" in parts or merit == 1 else WRONG_STYLE_CREDIT
    return weights.merit * merit + anneal * credit * style - length


def margin(weights: Weights) -> float:
    """By how much the worst right answer is sure to beat the best half-right one; negative when it is not."""
    style = weights.structure + weights.format + weights.near
    return weights.merit - weights.verbosity - (weights.merit + style) / 2


def _known(score: float | None) -> float:
    assert score is not None
    return score
