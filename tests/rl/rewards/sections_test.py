"""Four sections: what the rows by hand in cases/ cannot say, for they have no tokens."""

import pytest

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import sections

PROBLEM = batch.Problem("id", "9 + 9?", "18")


def written(words, *, tokens):
    """A well-formed text; every word of the second section is `tokens` tokens."""
    parts = [f"<reasoning>## {sections.HEADINGS[0]}\nadd both numbers\n## {sections.HEADINGS[1]}\n", words]
    parts += [f"\n## {sections.HEADINGS[2]}\ntaking 9 away leaves 9\n"]
    parts += [f"## {sections.HEADINGS[3]}\nboth make 18 pens\n</reasoning>", "<answer>18</answer>"]
    spans, begin = [], 0
    for part in parts:
        spans += [(begin, begin + len(part))] + [(begin, begin + 1)] * (tokens - 1 if part == words else 0)
        begin += len(part)
    return batch.Completion("".join(parts), tuple(spans), (0.0,) * len(spans))


def test_a_section_of_too_many_tokens_says_nothing():
    limit = sections.MAX_SECTION_TOKENS
    # The first and third part touch the section with a character each: the line ends beside its words.
    assert sections.score(written("9 + 9 = 18", tokens=limit - 2), PROBLEM) == pytest.approx(1.0)
    assert sections.score(written("9 + 9 = 18", tokens=limit - 1), PROBLEM) == pytest.approx(0.75)


def test_approximate_counts_what_occurs_once():
    text = written("9 + 9 = 18", tokens=1).text
    for found, expected in (
        (text, 1.0),
        (text.replace("## Final Synthesis", "## The End"), 7 / 8),
        (text.replace("<answer>", "<answer><answer>"), 7 / 8),
        (text + text, 0.0),
        ("", 0.0),
    ):
        assert sections.approximate(batch.Completion(found, (), ())) == expected
        assert sections.approximate(batch.Completion(found, (), (), stopped=False)) == 0.0
