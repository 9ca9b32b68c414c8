from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.step import Outcome, Where
from ioptim.recipe import RecipeTarget
from ioptim.steps.compile import Compile


@pytest.fixture
def target() -> RecipeTarget:
    return RecipeTarget.model_validate({"name": "here", "runtime": {"runtime": "null"}})


def where(target: RecipeTarget) -> Where:
    return Where(format=Format.ONNX, targets=(target,), task=None, hardware=None, has_calibration=False)


def test_the_runtime_decides_what_comes_out(target: RecipeTarget) -> None:
    assert Compile().produces(where(target)) == target.runtime.compiled
    assert Compile().library_names(where(target)) == target.runtime.libraries


def test_what_was_compiled_says_for_which_runtime_and_not_what_its_target_is_called(tmp_path: Path, target: RecipeTarget) -> None:
    model = ModelArtifact(path=tmp_path, format=Format.ONNX, entry="model.onnx")
    ctx = SimpleNamespace(out=tmp_path, target=target, progress=lambda done, message: None)
    outcome = Compile().run(model, ctx)  # type: ignore[arg-type]
    assert isinstance(outcome, Outcome) and outcome.written is not None
    assert outcome.written.facts["runtime"] == "null"
    assert "target" not in {**outcome.written.facts, **outcome.facts}
    assert (tmp_path / "model" / outcome.written.entry).is_file()
