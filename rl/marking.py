"""What evaluation asks of one completion: is it right, read strictly and leniently, and is it in the form asked for?

    strict     the answer of a well-formed completion, and of no other: what rewards go by
    lenient    the last complete answer block; without one what looks most like an answer: of a number the last in the
               text, of a choice the last "answer is B", of a program the last fenced block, else the whole text

The gap between the two is what cannot format, beside what cannot solve.
"""

import dataclasses
import math
import re
from collections.abc import Hashable, Sequence

from thinkfirst.rl import batch, evaluation, failures
from thinkfirst.rl.rewards import answers, choice, code, confidence, domains, parse, program, rubric, sections, trace

_NAMED_CHOICE = re.compile(r"\b(?:answer|option|choice)\W{0,3}(?:is\W{0,3})?([A-Z])\b")


@dataclasses.dataclass(frozen=True)
class Marked:
    """A completion with what evaluation asks of it.

    `lenient` and `strict` are how right it is, in [0, 1], of an open problem the rubric; None where nobody could say.
    `certainty` is that of the answer's tokens, None without any; `failure` is "" for what is right (rl/failures.py).
    """

    problem: batch.Problem
    completion: batch.Completion
    answer: str | None
    lenient: float | None
    strict: float | None
    well_formed: bool
    trace: float
    certainty: float | None
    failure: str

    @property
    def is_open(self) -> bool:
        return domains.kind(self.problem) == "open"

    @property
    def right(self) -> bool:
        return self.lenient == 1

    @property
    def right_strictly(self) -> bool:
        return self.strict == 1

    @property
    def vote(self) -> Hashable | None:
        """What the answer says, so that equal answers are equal; None where there is none to vote with."""
        if self.answer is None or domains.kind(self.problem) in ("open", "code"):
            return None
        if domains.kind(self.problem) == "choice":
            labels = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(self.problem.choices)]
            place = choice.chosen(self.answer, self.problem.choices, labels)
            return " ".join(self.answer.split()) if place is None else place
        number = answers.parse_number(self.answer)
        return " ".join(self.answer.casefold().split()) if number is None else number


def mark_all(
    rows: Sequence[tuple[batch.Problem, batch.Completion]], form: evaluation.Form, judge: code.Judge | None = None
) -> list[Marked]:
    """Every completion marked; all programs run side by side."""
    if judge is not None:
        written = [
            (found, problem.tests)
            for problem, completion in rows
            if domains.kind(problem) == "code"
            for text in (lenient_answer(problem, completion.text), parse.strict_answer(parse.parse(completion)))
            if (found := domains.extracted(text, problem)) is not None
        ]
        judge.hand_in(written)
    return [mark(problem, completion, form, judge) for problem, completion in rows]


def mark(
    problem: batch.Problem, completion: batch.Completion, form: evaluation.Form, judge: program.Judge | None = None
) -> Marked:
    """One completion marked."""
    parsed = parse.parse(completion)
    answer, strict_answer = lenient_answer(problem, completion.text), parse.strict_answer(parsed)
    lenient, strict = _score(answer, problem, judge), _score(strict_answer, problem, judge)
    fine = domains.kind(problem) == "open" or strict == 1 or None in (strict, lenient)
    return Marked(
        problem=problem,
        completion=completion,
        answer=answer,
        lenient=lenient,
        strict=strict,
        well_formed=parsed.well_formed if form == "steps" else sections.exact(completion, problem) == 1,
        trace=trace.score(completion, problem) if form == "steps" else sections.score(completion, problem),
        certainty=_certainty(parsed, completion),
        failure=""
        if fine
        else failures.kind(problem, completion, answer=answer, lenient_right=lenient == 1, form=form),
    )


def lenient_answer(problem: batch.Problem, text: str) -> str | None:
    """The answer, read from whatever there is."""
    what = domains.kind(problem)
    if f"</{parse.ANSWER_TAG}>" in text or what == "math":
        return parse.lenient_answer(text)
    if what == "choice" and (named := _NAMED_CHOICE.findall(text)):
        return named[-1]
    return (code.program(text) if what == "code" else text).strip() or None


def _score(answer: str | None, problem: batch.Problem, judge: program.Judge | None) -> float | None:
    """How right an answer is; the rubric's word where there is no single one."""
    if domains.kind(problem) == "open":
        return rubric.combine(rubric.parts(answer, problem))
    return domains.correctness(domains.extracted(answer, problem), problem, judge)


def _certainty(parsed: parse.Parsed, completion: batch.Completion) -> float | None:
    """Geometric mean of the probabilities of the answer's tokens, if there is one whose tokens are known."""
    if not parsed.well_formed or len(completion.logp) != len(completion.spans):
        return None
    logp = [completion.logp[token] for token in parse.tokens_in(completion, parsed.answer_span)]
    return confidence.certainty(logp) if logp and all(map(math.isfinite, logp)) else None
