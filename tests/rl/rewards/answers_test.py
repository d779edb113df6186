"""When two answers are the same, and the near misses that are not."""

import fractions

import pytest

from thinkfirst.rl.rewards import answers


@pytest.mark.parametrize(
    "text, value",
    [
        ("18", 18),
        (" 18\n", 18),
        ("0018", 18),
        ("18.", 18),
        ("18.0", 18),
        ("18.0.", 18),
        ("-5", -5),
        ("+5", 5),
        ("\u22125", -5),
        ("-0", 0),
        ("$18", 18),
        ("-$18", -18),
        ("$-18", -18),
        ("\u20ac1,000.50", fractions.Fraction(2001, 2)),
        ("1,000", 1000),
        ("12,345,678", 12345678),
        ("0.5", fractions.Fraction(1, 2)),
        (".5", fractions.Fraction(1, 2)),
        ("1/2", fractions.Fraction(1, 2)),
        ("-1/2", fractions.Fraction(-1, 2)),
        ("1,000/3", fractions.Fraction(1000, 3)),
        ("50%", 50),
        ("50%.", 50),
        ("9" * 64, 10**64 - 1),
    ],
)
def test_numbers(text, value):
    assert answers.parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ".", "-", "$", "%", "1,00", "1000,000", ",100", "1,000,", "18..", "18.%", "--5", "-$-5", "$$5",
        "5$", "- 5", "18 19", "18 eggs", "x=18", "1/0", "1/2/3", "1.5/2", "1/-2", "1e3", "0x10", "1_000", "inf",
        "nan", "(18)", "**18**", "\uff11\uff18", "\u0661\u0668", "1\u200b8", "\u00b2", "\u00bd", "18\u0660",
        "1\u00a0000", "9" * 65, "1" * 100_000,
    ],
)  # fmt: skip
def test_not_a_number(text):
    assert answers.parse_number(text) is None


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("1,000", "1000"),
        ("$18", "18"),
        ("18.", "18"),
        ("18.0", "18"),
        ("0.5", "1/2"),
        ("2/4", "1/2"),
        ("50%", "50"),
        ("\u22125", "-5"),
        ("Paris", "paris"),
        (" Paris. ", "Paris"),
        ("New\n  York", "new york"),
        ("(B)", "b"),
        ("**yes**", "Yes"),
        ("18 and 19", "18 and 19."),
        ("1/0", "1/0"),
    ],
)
def test_equal(answer, gold):
    assert answers.equal(answer, gold) and answers.equal(gold, answer)


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("", ""),
        ("", "18"),
        (" ", " "),
        ("...", "..."),
        ("...", ""),
        (None, ""),
        (None, "None"),
        ("1819", "18 and 19"),
        ("18", "18 and 19"),
        ("18 19", "18 and 19"),
        ("12", "1/2"),
        ("18", "18 19"),
        ("18 19", "18"),
        ("5", "-5"),
        ("-5!", "5"),
        ("- 5", "5"),
        ("101", "100"),
        ("99.99999999999999999999", "100"),
        ("100.0000000000000000001", "100"),
        ("1,00", "100"),
        ("50%", "0.5"),
        ("18 eggs", "18"),
        ("(18)", "18"),
        ("5!", "5"),
        ("\uff11\uff18", "18"),
        ("1\u200b8", "18"),
        ("\u0440aris", "paris"),
        ("paris and london", "paris"),
        ("par", "paris"),
        ("[1, 2)", "(1, 2]"),
        ("(1, 2)", "[1, 2]"),
        ("-x", "x"),
    ],
)
def test_not_equal(answer, gold):
    assert not answers.equal(answer, gold)
    assert gold is None or answer is None or not answers.equal(gold, answer)


@pytest.mark.parametrize(
    "text, found",
    [
        ("3+4=7", ["3", "4", "7"]),
        ("10-5 = 5", ["10", "5", "5"]),
        ("2 - 7 = -5", ["2", "7", "-5"]),
        ("(2+3)-5", ["2", "3", "5"]),
        ("$1,234.50, or 50%.", ["$1,234.50", "50"]),
        ("1/2 of .5", ["1/2", ".5"]),
        ("x2 v1.5 1,00 1.2.3 5kg", ["5"]),
        ("", []),
    ],
)
def test_numbers_in_a_text(text, found):
    assert answers.numbers(text) == found


def test_long_texts_are_quick():
    for unit in ("9", "9,999", "1/", "(", "*", "\u00df", "a "):
        text = unit * (100_000 // len(unit))
        assert not answers.equal(text, "18")
        assert not answers.equal(text, "x")
