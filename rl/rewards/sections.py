"""The reasoning of the think_first pipeline: four sections under their headings, then the answer.

    <reasoning>
    ## Analysis & Strategy
    ...
    ## Step-by-Step Execution
    ...
    ## Verification & Self-Correction
    ...
    ## Final Synthesis
    ...
    </reasoning><answer>...</answer>

A heading stands at the beginning of a line or of the reasoning, with or without a number, `#` or `**` around it, and
ends the line or is followed by a colon; the same words within a sentence are none.  A section *says something* when it
holds at least three different words, numbers or operators that are no stock phrase (see `trace`), and neither another
section nor the question says just the same.
"""

import re

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import parse, trace

HEADINGS = (
    "Analysis & Strategy",
    "Step-by-Step Execution",
    "Verification & Self-Correction",
    "Final Synthesis",
)
# A section longer than this hides the others; in tokens, as the sampler's limits are.
MAX_SECTION_TOKENS = 512

_HEADING = re.compile(
    rf"(?:^|(?<=<{parse.REASONING_TAG}>))"
    r"[ \t]{0,3}(?:#{1,6}[ \t]{0,3})?(?:\*\*)?(?:[1-4][.)][ \t])?("
    + "|".join(map(re.escape, HEADINGS))
    + r")(?:\*\*)?(?::(?:\*\*)?|[ \t]*$)",
    re.MULTILINE,
)
_TAGS = tuple(f"<{slash}{tag}>" for tag in (parse.REASONING_TAG, parse.ANSWER_TAG) for slash in ("", "/"))


def score(completion: batch.Completion, problem: batch.Problem) -> float:
    """Share of the sections that say something, in [0, 1].

    0 when the completion is not well formed, or its headings are not those four, each once and in order.
    """
    parsed = parse.parse(completion)
    if not parsed.well_formed:
        return 0.0
    found = list(_HEADING.finditer(completion.text, *parsed.reasoning_span))
    if tuple(heading[1] for heading in found) != HEADINGS:
        return 0.0
    ends = [heading.start() for heading in found[1:]] + [parsed.reasoning_span[1]]
    seen = {trace.content(problem.question)}
    substantive = 0
    for begin, end in zip((heading.end() for heading in found), ends, strict=True):
        said = trace.content(completion.text[begin:end])
        long = len(parse.tokens_in(completion, (begin, end))) > MAX_SECTION_TOKENS
        substantive += len(set(said)) >= trace.MIN_PIECES and said not in seen and not long
        seen.add(said)
    return substantive / len(HEADINGS)


def exact(completion: batch.Completion, problem: batch.Problem) -> float:
    """1 when the completion is well formed and its reasoning is four sections that all say something, else 0."""
    parsed = parse.parse(completion)
    if score(completion, problem) < 1:
        return 0.0
    first = _HEADING.search(completion.text, *parsed.reasoning_span)
    assert first is not None
    return float(not completion.text[parsed.reasoning_span[0] : first.start()].strip())


def approximate(completion: batch.Completion) -> float:
    """Share of the four tags and four headings that occur exactly once, in [0, 1]; 0 for a truncated text."""
    if not completion.stopped:
        return 0.0
    found = [heading[1] for heading in _HEADING.finditer(completion.text)]
    once = sum(completion.text.count(tag) == 1 for tag in _TAGS) + sum(found.count(name) == 1 for name in HEADINGS)
    return once / (len(_TAGS) + len(HEADINGS))
