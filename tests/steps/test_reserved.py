"""Steps whose names are taken and that nobody can run: the plan says so, and what there is instead."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ioptim.core.artifact import Format
from ioptim.core.step import Step, Where
from ioptim.errors import StepError
from ioptim.steps.distill import Distill
from ioptim.steps.prune import Prune

WHERE = Where(format=Format.TORCH, targets=(), task=None, hardware=None, has_calibration=True)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            Distill(),
            "the step `distill` is not there yet: its name is reserved. Train the student yourself and name it as `model.source`;"
            " `quantize` makes it smaller and faster from there",
        ),
        (
            Prune(),
            "the step `prune` is not there yet: its name is reserved. Prune the model elsewhere and name the result as `model.source`;"
            " `quantize` makes a model smaller and faster without training",
        ),
    ],
)
def test_refused_by_the_plan_and_when_run(step: Step, message: str) -> None:
    assert step.check(WHERE) == [message]
    with pytest.raises(StepError) as caught:
        step.run(cast(Any, None), cast(Any, None))
    assert str(caught.value) == message
