"""Remove whole channels and heads. Reserved: not written yet."""

from __future__ import annotations

from typing import Literal

from ioptim.core.artifact import ModelArtifact
from ioptim.core.step import Context, Outcome, Step, Where
from ioptim.errors import StepError

NOT_YET = (
    "the step `prune` is not there yet: its name is reserved. Prune the model elsewhere and name the result as"
    " `model.source`; `quantize` makes a model smaller and faster without training"
)


class Prune(Step):
    """Reserved for structured pruning. Refused by the plan, so that no recipe can believe it ran."""

    step: Literal["prune"] = "prune"

    def check(self, where: Where) -> list[str]:
        return [NOT_YET]

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        raise StepError(NOT_YET)
