"""What stands between the stages of a run: the evaluation a gate compares with, and the adapter it gives back."""

import dataclasses
from typing import Any

from thinkfirst.models import lora
from thinkfirst.rl import gate, policy, stages

Progress = dict[str, Any]  # {"stages": [...], "evaluations": [...], "gates": [...], "traces": {...}}


@dataclasses.dataclass
class Standing:
    """State of a run from stage to stage, the same whether they were run now or in an earlier call.

    `kept` is the evaluation of the policy before the last stage that trained and `before` its adapter; `latest` is the
    newest evaluation.  `given_up` says that the last such stage was.
    """

    kept: dict[str, Any] | None = None
    latest: dict[str, Any] | None = None
    before: lora.Adapter | None = None
    given_up: bool = False

    def begins(self, subject: policy.Policy) -> None:
        """A stage that trains is about to change the policy."""
        self.kept, self.before, self.given_up = self.latest, subject.adapter, False

    def judged(self, stage: stages.Gate) -> dict[str, Any]:
        """The verdict on that stage."""
        assert self.kept is not None and self.latest is not None, "the order of stages was checked"
        verdict = gate.decide(self.kept, self.latest, metrics=stage.metrics, level=stage.level)
        return {"name": stage.name, **verdict}

    def passed(self, subject: policy.Policy, stage: stages.Stage, progress: Progress) -> None:
        """What a finished stage that trains nothing leaves."""
        if isinstance(stage, stages.Evaluate):
            self.latest = next(row for row in progress["evaluations"] if row["stage"] == stage.label)
        elif isinstance(stage, stages.Merge):
            if subject.adapter is not None or not self.given_up:
                subject.merge()
        elif isinstance(stage, stages.Gate):
            verdict = next(row for row in progress["gates"] if row["name"] == stage.name)
            self.given_up = not verdict["kept"]
            if self.given_up:
                subject.adapter, self.latest = self.before, self.kept
