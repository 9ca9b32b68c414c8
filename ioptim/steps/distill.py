"""Train a small model to answer like a large one. Reserved: not written yet."""

from __future__ import annotations

from typing import Literal

from ioptim.core.artifact import ModelArtifact
from ioptim.core.step import Context, Outcome, Step, Where
from ioptim.errors import StepError

NOT_YET = (
    "the step `distill` is not there yet: its name is reserved. Train the student yourself and name it as `model.source`;"
    " `quantize` makes it smaller and faster from there"
)


class Distill(Step):
    """Reserved for knowledge distillation. Refused by the plan, so that no recipe can believe it ran."""

    step: Literal["distill"] = "distill"

    def check(self, where: Where) -> list[str]:
        return [NOT_YET]

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        raise StepError(NOT_YET)
