from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from ioptim.core.artifact import Format
from ioptim.core.step import Outcome, Written
from ioptim.recipe import STEPS, WRITABLE_STEPS
from ioptim.steps.source import Source


def test_the_source_is_asked_for_the_task(tmp_path: Path) -> None:
    outcome = Outcome(written=Written(format=Format.TORCH, entry="model.safetensors"))
    asked = []

    def fetch(out: Path, task: object) -> Outcome:
        asked.append((out, task))
        return outcome

    ctx = SimpleNamespace(out=tmp_path, task="the task", source=SimpleNamespace(fetch=fetch), progress=lambda done, message: None)
    assert Source().run(None, ctx) is outcome  # type: ignore[arg-type]
    assert asked == [(tmp_path, "the task")]


def test_a_recipe_cannot_write_it() -> None:
    assert "source" in STEPS and "source" not in WRITABLE_STEPS
