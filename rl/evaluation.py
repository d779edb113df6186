"""Names of how an answer is looked at, shared by the stages and by what evaluates."""

from typing import Literal

Form = Literal["steps", "sections"]  # what a good trace is made of
Metric = Literal["score", "accuracy", "strict"]  # what a gate compares
