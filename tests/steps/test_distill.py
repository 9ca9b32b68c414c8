"""A name that is taken: the plan says so, and what there is instead."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ioptim.core.artifact import Format
from ioptim.core.step import Where
from ioptim.errors import StepError
from ioptim.steps.distill import Distill

MESSAGE = (
    "the step `distill` is not there yet: its name is reserved. Train the student yourself and name it as `model.source`;"
    " `quantize` makes it smaller and faster from there"
)


def test_refused_by_the_plan() -> None:
    where = Where(format=Format.TORCH, targets=(), task=None, hardware=None, has_calibration=True)
    assert Distill().check(where) == [MESSAGE]


def test_refused_when_run() -> None:
    with pytest.raises(StepError) as caught:
        Distill().run(cast(Any, None), cast(Any, None))
    assert str(caught.value) == MESSAGE
