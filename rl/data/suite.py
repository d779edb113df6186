"""Twenty questions of our own that every model can be asked before and after a stage: no data set, nothing to fetch.

Ten of arithmetic in words, three programs, two of science by multiple choice, five without a single answer.  Too few to
measure by; enough to see at a glance what a stage did to what a model writes.
"""

from thinkfirst.rl import batch
from thinkfirst.rl.data import choice, rows

_MATH = (
    ("A baker sells 14 rolls in the morning and twice as many in the afternoon. How many rolls does she sell?", "42"),
    ("A tank holds 250 litres. It is filled at 15 litres a minute for 9 minutes. How many litres are missing?", "115"),
    ("Three friends share a bill of $84.60 equally. How many dollars does each pay?", "28.20"),
    ("A train leaves at 9:40 and arrives at 13:05. How many minutes does it travel?", "205"),
    ("A coat costs 80 euros and is sold for 15% less. What does it cost now, in euros?", "68"),
    ("A rectangle is 7 cm wide and has a perimeter of 38 cm. What is its area in square centimetres?", "84"),
    ("Of 45 pupils two fifths walk to school, and of the others a third cycle. How many cycle?", "9"),
    ("What is the sum of all whole numbers from 11 to 20?", "155"),
    ("A recipe for 4 people takes 300 g of flour. How many grams does it take for 7 people?", "525"),
    ("Ines has 5 more stamps than Omar. Together they have 63. How many stamps does Ines have?", "34"),
)
_CODE = (
    (
        "Write a Python function second_largest(numbers) that returns the second largest of the different numbers in a "
        "list, or None if there is none.",
        (
            "assert second_largest([3, 1, 2]) == 2",
            "assert second_largest([5, 5, 4]) == 4",
            "assert second_largest([7, 7]) == None",
            "assert second_largest([-1, -9]) == -9",
        ),
    ),
    (
        "Write a Python function rle(text) that returns a list of (character, count) pairs for the runs of equal "
        "characters in a text.",
        (
            "assert rle('aab') == [('a', 2), ('b', 1)]",
            "assert rle('') == []",
            "assert rle('abba') == [('a', 1), ('b', 2), ('a', 1)]",
        ),
    ),
    (
        "Write a Python function is_balanced(text) that tells whether the round and square brackets in a text are "
        "balanced.",
        (
            "assert is_balanced('(a[b])') == True",
            "assert is_balanced('([)]') == False",
            "assert is_balanced('(') == False",
            "assert is_balanced('') == True",
        ),
    ),
)
_SCIENCE = (
    (
        "A stone is thrown straight up. What is its acceleration at the highest point, air left aside?",
        ("zero", "that of gravity, downwards", "that of gravity, upwards", "it depends on its mass"),
        "B",
    ),
    (
        "Which part of a plant cell turns light into chemical energy?",
        ("the nucleus", "the mitochondrion", "the vacuole", "the chloroplast"),
        "D",
    ),
)
_OPEN = (
    ("creative", "Write a story of at most 120 words about a lighthouse keeper. Include the word 'fog'."),
    ("creative", "Write a poem of 8 lines about the first day of autumn. Do not use the word 'leaves'."),
    ("creative", "Describe a busy market in three sentences, for somebody who has never seen one."),
    ("creative", "Explain to a child of ten, in at most 100 words, why the sky is dark at night."),
    (
        "summary",
        "Summarise this report in one sentence.\n\n"
        "The town library will close for four months from May. Its roof, built in 1962, leaks in eleven places, and "
        "last winter water ruined some three hundred books. The council has set aside half a million for the work and "
        "will lend books from a van on the market square on Tuesdays and Fridays. Readers may keep what they have "
        "borrowed until the library opens again in September.",
    ),
)


def problems() -> list[batch.Problem]:
    """The suite, always in the same order."""
    found = [_problem(question, answer, domain="math") for question, answer in _MATH]
    found += [_problem(question, "", domain="code", tests=tests) for question, tests in _CODE]
    for question, choices, answer in _SCIENCE:
        asked = choice.question(question, choices)
        found.append(_problem(asked, answer, domain="science", choices=choices))
    return found + [_problem(question, "", domain=domain) for domain, question in _OPEN]


def _problem(
    question: str, answer: str, *, domain: str, choices: tuple[str, ...] = (), tests: tuple[str, ...] = ()
) -> batch.Problem:
    return batch.Problem(rows.identity(question), question, answer, domain=domain, choices=choices, tests=tests)
