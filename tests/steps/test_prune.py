"""A name that is taken: the plan says so, and what there is instead."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ioptim.core.artifact import Format
from ioptim.core.step import Where
from ioptim.errors import StepError
from ioptim.steps.prune import Prune

MESSAGE = (
    "the step `prune` is not there yet: its name is reserved. Prune the model elsewhere and name the result as"
    " `model.source`; `quantize` makes a model smaller and faster without training"
)


def test_refused_by_the_plan() -> None:
    where = Where(format=Format.TORCH, targets=(), task=None, hardware=None, has_calibration=True)
    assert Prune().check(where) == [MESSAGE]


def test_refused_when_run() -> None:
    with pytest.raises(StepError) as caught:
        Prune().run(cast(Any, None), cast(Any, None))
    assert str(caught.value) == MESSAGE
