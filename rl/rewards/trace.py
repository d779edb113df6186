"""Whether the reasoning is a trace: enough numbered steps that each say something, ending in the answer.

    score = min(1, substantive / expected) * max(0, 1 - idle / maximum) * (1 if the last step has the answer else 1/2)

and 0 when the completion is not well formed or its headings are not `Step 1:`, `Step 2:`, ... without gap or repeat.
`expected` depends on the problem's difficulty; `maximum` = 2 * expected + 2.

* A step is *substantive* when, connectives and stock phrases dropped, it holds at least three different words, numbers
  or operators, one of them a number or a word of the question, and repeats neither an earlier step nor the question.
* A step is *idle* when it is not substantive, or stands beyond the maximum.  A last step that only states the answer is
  neither: it earns nothing and costs nothing.

Why a product and not a mean: every factor must hold.  Why idle steps are counted and not their share: an idle step
always costs the same, and no number of further steps dilutes it.  So a step beyond `expected` never pays, unless it
states an answer left unstated.
Arithmetic is not checked here: that is for correctness, and this score is worth half when the answer is wrong.
Known limit: numbers without sense still look like a step, which is why structure alone never outweighs being right.
"""

import re

from thinkfirst.rl import batch
from thinkfirst.rl.rewards import answers, parse

EXPECTED_STEPS = {"easy": 1, "medium": 2, "hard": 2}
UNCONCLUDED_CREDIT = 0.5
MIN_PIECES = 3

# Words that join statements or announce them, and so make none.
STOCK_WORDS = frozenset(
    """
    a an the and or but so then thus hence therefore first second third firstly secondly thirdly next now after
    before finally lastly last also because since however moreover furthermore consequently accordingly meanwhile
    afterwards subsequently overall ultimately indeed likewise similarly additionally besides again once more still
    as such i we us our you your it its this that these those there is are was were be being been let s do does did
    get gets got have has given know need needs can could will would should must to of in on for by at with from
    into step steps answer answers result final conclusion conclude conclusively clearly obviously okay ok well
    think thinking consider reasoning problem question solution solve
    """.split()  # noqa: SIM905 - a hundred quoted words would hide the table
)

_DIGITS = "0123456789"
_PIECE = re.compile(r"[0-9]+(?:[.,][0-9]+)*|[^\W\d_]+|[-+*/=<>^%\u00d7\u00f7\u2212]")


def score(completion: batch.Completion, problem: batch.Problem) -> float:
    """Structure of the reasoning, in [0, 1]."""
    parsed = parse.parse(completion)
    answer = parse.strict_answer(parsed)
    num_steps = len(parsed.steps)
    if answer is None or not num_steps or parsed.step_numbers != tuple(range(1, num_steps + 1)):
        return 0.0
    expected = EXPECTED_STEPS.get(problem.difficulty, EXPECTED_STEPS["medium"])
    concluded = _states(parsed.steps[-1], answer)
    maximum = 2 * expected + 2
    substantive, idle = _census(parsed.steps, problem.question, maximum=maximum, concluded=concluded)
    structure = min(1.0, substantive / expected) * max(0.0, 1 - idle / maximum)
    return structure * (1.0 if concluded else UNCONCLUDED_CREDIT)


def _census(steps: tuple[str, ...], question: str, *, maximum: int, concluded: bool) -> tuple[int, int]:
    """Number of substantive and of idle steps."""
    question_content = content(question)
    question_words = set(question_content)
    seen = {question_content}
    substantive = idle = 0
    for index, step in enumerate(steps):
        said = content(step)
        grounded = any(piece[0] in _DIGITS or (piece.isalpha() and piece in question_words) for piece in said)
        if index >= maximum or said in seen or not said:
            idle += 1
        elif grounded and len(set(said)) >= MIN_PIECES:
            substantive += 1
        elif not (concluded and index == len(steps) - 1):
            idle += 1
        seen.add(said)
    return substantive, idle


def _states(step: str, answer: str) -> bool:
    """Whether the answer stands in the step as a whole number (by value) or as whole words."""
    value = answers.parse_number(answer)
    if value is not None:
        return any(answers.parse_number(number) == value for number in answers.numbers(step))
    words = _pieces(answer)
    return bool(words) and f" {' '.join(words)} " in f" {' '.join(_pieces(step))} "


def content(text: str) -> tuple[str, ...]:
    """What a text says: its words, numbers and operators in order, without the stock words."""
    return tuple(piece for piece in _pieces(text) if piece not in STOCK_WORDS)


def _pieces(text: str) -> list[str]:
    return _PIECE.findall(text.casefold())
