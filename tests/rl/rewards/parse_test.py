"""The reading of a completion: what is well formed, where its parts are, and that no text makes it slow."""

import pytest

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import parse

GOOD = "<reasoning>Step 1: 9 + 9 = 18</reasoning><answer>18</answer>"


def completion(text, *, stopped=True):
    return batch.Completion(text, (), (), stopped)


def test_parts_of_a_well_formed_text():
    text = "\n<reasoning> Step 1: 3 + 4 = 7\nStep 2: 7 * 2 = 14 </reasoning>\n<answer> 14 </answer>\n"
    parsed = parse.parse(completion(text))
    assert parsed.well_formed and parsed.fault == ""
    assert parsed.reasoning == "Step 1: 3 + 4 = 7\nStep 2: 7 * 2 = 14"
    assert parsed.steps == ("3 + 4 = 7", "7 * 2 = 14") and parsed.step_numbers == (1, 2)
    assert parsed.answer == "14" and parse.strict_answer(parsed) == "14"


def test_spans_cut_the_text():
    text = " <reasoning> ab </reasoning><answer>  14 </answer>"
    parsed = parse.parse(completion(text))
    assert parsed.reasoning_span == (12, 16) and text[12:16] == " ab "
    assert parsed.answer_span == (38, 40) and text[38:40] == "14"


@pytest.mark.parametrize(
    "text, fault",
    [
        ("", "tags"),
        ("18", "tags"),
        ("<answer>18</answer>", "tags"),
        ("<reasoning>Step 1: 18</reasoning><answer>18", "tags"),
        (GOOD + GOOD, "tags"),
        (GOOD + "<answer>19</answer>", "tags"),
        ("<reasoning>" + GOOD, "tags"),
        (GOOD.upper(), "tags"),
        (GOOD.replace("<answer>", "< answer>"), "tags"),
        (GOOD.replace("<answer>", "<\u0430nswer>"), "tags"),
        ("<answer>18</answer><reasoning>Step 1: 18</reasoning>", "order"),
        ("<reasoning>a<answer>18</reasoning></answer>", "order"),
        ("<reasoning>a<answer>18</answer></reasoning>", "order"),
        ("Sure! " + GOOD, "stray text"),
        ("Sure!\n" + GOOD, "stray text"),
        (GOOD.replace("><answer>", ">So <answer>"), "stray text"),
        (GOOD + "\nDone", "stray text"),
        ("<reasoning> \n</reasoning><answer>18</answer>", "empty reasoning"),
        ("<reasoning>Step 1: 18</reasoning><answer></answer>", "empty answer"),
        ("<reasoning>Step 1: 18</reasoning><answer>\t </answer>", "empty answer"),
        (GOOD + "\n" * 17, "padding"),
        (GOOD.replace("><answer>", ">" + " " * 17 + "<answer>"), "padding"),
        (GOOD.replace("18</answer>", " " * 17 + "18</answer>"), "padding"),
    ],
)
def test_faults(text, fault):
    parsed = parse.parse(completion(text))
    assert parsed.fault == fault and not parsed.well_formed
    assert parse.strict_answer(parsed) is None


def test_truncated_text_is_never_well_formed():
    parsed = parse.parse(completion(GOOD, stopped=False))
    assert parsed.fault == "truncated" and parsed.answer == "18"
    assert parse.strict_answer(parsed) is None
    assert parse.parse(completion("<reasoning>Step 1: 9", stopped=False)).fault == "truncated"


def test_layout_whitespace_is_allowed_up_to_the_limit():
    gap = "\n" * parse.MAX_PADDING
    text = f"{gap}<reasoning>a</reasoning>{gap}<answer>18</answer>{gap}"
    assert parse.parse(completion(text)).well_formed


def test_long_reasoning_and_its_whitespace_are_not_padding():
    assert parse.parse(completion(GOOD.replace("Step 1:", "Step 1:" + " " * 1000))).well_formed


def test_other_tags():
    text = "<think>Step 1: a</think><final>x</final>"
    assert parse.strict_answer(parse.parse(completion(text), reasoning_tag="think", answer_tag="final")) == "x"
    assert parse.parse(completion(text)).fault == "tags"


@pytest.mark.parametrize(
    "reasoning, numbers, steps",
    [
        ("no heading", (), ()),
        ("Plan. Step 1: a Step 2: b", (1, 2), ("a", "b")),
        ("Step 1: Step 2: Step 3:", (1, 2, 3), ("", "", "")),
        ("**Step 1:** a", (1,), ("** a",)),
        ("Step 2: a Step 1: b", (2, 1), ("a", "b")),
        ("Footstep 1: a, misStep 1: b", (), ()),
        ("Step 0: a Step 01: b Step -1: c Step 1.5: d Step x: e Step 12345: f", (), ()),
        ("Step \u0661: a", (), ()),
        ("\u0405tep 1: a", (), ()),
    ],
)
def test_steps(reasoning, numbers, steps):
    parsed = parse.parse(completion(f"<reasoning>{reasoning}</reasoning><answer>1</answer>"))
    assert parsed.step_numbers == numbers and parsed.steps == steps


@pytest.mark.parametrize(
    "text, answer",
    [
        (GOOD, "18"),
        ("<answer>4</answer><answer> 5 </answer>", "5"),
        ("<answer>4</answer> or <answer>5", "4"),
        ("<answer>4<answer>5</answer></answer>", "5"),
        ("<answer></answer> 7", ""),
        ("</answer> 7 <answer>", "7"),
        ("first 1,234 then -5.", "-5"),
        ("it costs $1,234.50.", "$1,234.50"),
        ("10-5", "5"),
        ("a half is .5", ".5"),
        ("no number", None),
        ("", None),
    ],
)
def test_lenient_answer(text, answer):
    assert parse.lenient_answer(text) == answer


@pytest.mark.parametrize(
    "span, tokens",
    [((2, 4), [1, 2]), ((3, 4), [1, 2]), ((0, 2), [0]), ((4, 5), [3]), ((9, 12), []), ((0, 5), [0, 1, 2, 3])],
)
def test_tokens_in_a_span(span, tokens):
    spans = ((0, 2), (2, 4), (3, 3), (4, 5))
    assert parse.tokens_in(batch.Completion("abcde", spans, (0.0,) * 4), span) == tokens


@pytest.mark.parametrize(
    "unit",
    [
        "<reasoning>",
        "<",
        "<answer></answer>",
        "</answer>",
        "Step 1:",
        "Step ",
        "1",
        "1,",
        "1.",
        "1/",
        "-",
        "$",
        ",",
        " ",
    ],
)
@pytest.mark.timeout(60)  # a quadratic reading of 100,000 characters would not end in it
def test_long_texts_are_read(unit):
    long_text = unit * (100_000 // len(unit))
    for text in (long_text, f"<reasoning>{long_text}</reasoning><answer>{long_text}</answer>"):
        parse.parse(completion(text))
        parse.lenient_answer(text)
