"""Why a completion is wrong, as far as its text shows: the first of these that holds.

    truncated     it was cut off before its end
    no answer     nothing in it could be read as an answer
    format        the answer is right, and not in the form asked for
    unit          the number is right, and counts something else
    arithmetic    an equation in it does not hold
    premature     its steps are fewer than a problem of this kind takes, or none states the answer; or a section is bare
    verbose       its reasoning is longer than what is free of penalty
    wrong         none of these

An equation is `a op b ... = c` of numbers alone.  A number with decimals may be rounded or cut.
"""

import fractions
import math
import re

from thinkfirst.rl import batch, evaluation
from thinkfirst.rl.rewards import answers, domains, parse, quantity, reward, sections, think_first, trace, verbosity

KINDS = ("truncated", "no answer", "format", "unit", "arithmetic", "premature", "verbose", "wrong")

_NUMBER = r"[$\u20ac\u00a3]?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?"
_OPERATOR = r"[-+*/\u00d7\u00f7x]"
# What stands before must be no part of a longer expression, and no closing bracket.
_EQUATION = re.compile(rf"(?<![\w.,)*/+%-])({_NUMBER}(?: ?{_OPERATOR} ?{_NUMBER}){{1,8}}) ?= ?(-?{_NUMBER})(?![\d%/*])")
_PIECE = re.compile(rf"{_NUMBER}|{_OPERATOR}")


def kind(
    problem: batch.Problem,
    completion: batch.Completion,
    *,
    answer: str | None,
    lenient_right: bool,
    form: evaluation.Form,
) -> str:
    """Why a completion is wrong whose answer, leniently read, is `answer`."""
    if not completion.stopped:
        return "truncated"
    if answer is None:
        return "no answer"
    if lenient_right:
        return "format"
    if _other_unit(answer, problem):
        return "unit"
    if domains.kind(problem) in ("math", "choice") and not all(holds for _, holds in equations(completion.text)):
        return "arithmetic"
    parsed = parse.parse(completion)
    traced = trace.score(completion, problem) if form == "steps" else sections.score(completion, problem)
    if parsed.well_formed and traced < 1:
        return "premature"
    free = verbosity.FREE_TOKENS if form == "steps" else think_first.FREE_TOKENS
    if reward.has_tokens(completion) and verbosity.score(completion, problem, free_tokens=free) > 0:
        return "verbose"
    return "wrong"


def equations(text: str) -> list[tuple[str, bool]]:
    """The equations in a text, each with whether it holds."""
    return [(found[0], _holds(found[1], found[2])) for found in _EQUATION.finditer(text)]


def _holds(expression: str, written: str) -> bool:
    value, said = _value(expression), _number(written)
    if value is None:
        return False
    scale = 10 ** len(written.partition(".")[2])
    cut = fractions.Fraction(math.trunc(value * scale), scale)
    return value == said or (scale > 1 and (said == cut or 2 * scale * abs(value - said) <= 1))


def _value(expression: str) -> fractions.Fraction | None:
    """The value by the usual precedence; None for a division by 0."""
    first, *rest = _PIECE.findall(expression)
    terms = [_number(first)]
    for operator, text in zip(rest[::2], rest[1::2], strict=True):
        number = _number(text)
        if operator in "+-":
            terms.append(number if operator == "+" else -number)
        elif operator in "/\u00f7":
            if not number:
                return None
            terms[-1] /= number
        else:
            terms[-1] *= number
    return sum(terms, fractions.Fraction(0))


def _number(text: str) -> fractions.Fraction:
    return fractions.Fraction(re.sub(r"[,$\u20ac\u00a3]", "", text))


def _other_unit(answer: str, problem: batch.Problem) -> bool:
    """Whether the number is the problem's, and only what it counts is another."""
    if domains.kind(problem) != "math" or quantity.equal(answer, problem.answer):
        return False
    mine, gold = answers.numbers(answer), answers.numbers(problem.answer)
    return len(mine) == len(gold) == 1 and answers.equal(mine[0], gold[0])
