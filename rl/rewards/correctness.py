"""Right or wrong.  The answer is read from a well-formed completion only, and being near earns nothing."""

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import answers, parse


def score(completion: batch.Completion, problem: batch.Problem) -> float:
    """1 when the completion is well formed and its answer equals the problem's, else 0."""
    return float(answers.equal(parse.strict_answer(parse.parse(completion)), problem.answer))
