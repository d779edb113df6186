"""How far the reasoning runs beyond its allowance, in tokens, as the sampler's limits are."""

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import parse

FREE_TOKENS = 150


def score(completion: batch.Completion, problem: batch.Problem, *, free_tokens: int = FREE_TOKENS) -> float:
    """Penalty in [0, 1]: 0 up to `free_tokens` tokens of reasoning, 1 from twice as many on.

    A text that is not well formed counts whole, and a token that wrote no text counts wherever it stands: neither
    breaking the format nor thinking in invisible tokens is a way out.
    """
    del problem
    if free_tokens < 1:
        raise ValueError(f"verbosity: free_tokens must be at least 1, not {free_tokens}")
    return min(1.0, max(0, num_reasoning_tokens(completion) - free_tokens) / free_tokens)


def num_reasoning_tokens(completion: batch.Completion) -> int:
    """Tokens that wrote reasoning or nothing; all tokens when the completion is not well formed."""
    parsed = parse.parse(completion)
    if not parsed.well_formed:
        return len(completion.spans)
    silent = {index for index, (begin, end) in enumerate(completion.spans) if begin >= end}
    return len(silent.union(parse.tokens_in(completion, parsed.reasoning_span)))
