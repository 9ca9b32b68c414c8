from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ioptim.cache import Store
from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal
from ioptim.core.step import Level, Outcome
from ioptim.errors import StepError
from ioptim.recipe import STEPS, WRITABLE_STEPS
from ioptim.steps.champion import Champion
from tests.steps.conftest import HARDWARE, FakeContext


@pytest.fixture
def promoted(tmp_path: Path) -> ModelArtifact:
    folder = tmp_path / "champion"
    (folder / "assets").mkdir(parents=True)
    (folder / "m").write_text("model")
    (folder / "assets" / "vocab").write_text("words")
    return seal(
        ModelArtifact(
            path=folder,
            format=Format.ONNX,
            entry="m",
            inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3)),),
            assets=("assets/vocab",),
            facts={"runtime": "onnxruntime", "labels": ["a"], "loader": {"kind": "none"}},
        )
    )


def run(promoted: ModelArtifact, out: Path, **changes: Any) -> Outcome:
    given = {"run_id": "run-1", "made_by": "compile", "promoted": "today", "hardware": HARDWARE.fingerprint, "digest": promoted.digest}
    step = Champion.model_validate({**given, "folder": str(promoted.path), **changes})
    out.mkdir(exist_ok=True)
    return step.run(None, FakeContext(out))  # type: ignore[arg-type]


def test_it_is_in_the_store_what_it_was_when_it_was_promoted(promoted: ModelArtifact, tmp_path: Path) -> None:
    store = Store(tmp_path / "store").create()
    with store.work() as out:
        outcome = run(promoted, out)
        kept = store.put("key", "champion", {}, outcome, out, 1.0, None)
    assert kept.model == promoted.digest
    sealed = store.model(promoted.digest)
    assert (sealed.files, sealed.facts, sealed.inputs, sealed.assets) == (promoted.files, promoted.facts, promoted.inputs, promoted.assets)
    assert [(note.level, note.text) for note in outcome.notes] == [
        (Level.INFO, "the champion is compile of run run-1, promoted today")
    ]


def test_what_speaks_against_it_is_a_warning(promoted: ModelArtifact, tmp_path: Path) -> None:
    outcome = run(promoted, tmp_path / "out", overridden=["size_bytes fails", "so does accuracy"], hardware="elsewhere")
    assert [note.text for note in outcome.notes if note.level is Level.WARNING] == [
        "it was promoted with --force, though size_bytes fails; so does accuracy",
        f"it was compiled on other hardware (elsewhere; here {HARDWARE.fingerprint}) and may be slower here than one compiled here,"
        " or refuse to open",
    ]


def test_one_that_has_changed_is_not_measured(promoted: ModelArtifact, tmp_path: Path) -> None:
    (promoted.path / "m").write_text("other")
    with pytest.raises(StepError, match="is damaged: m has .* Promote a run again: ioptim promote RUN"):
        run(promoted, tmp_path / "out")


def test_one_that_went_away_meanwhile(promoted: ModelArtifact, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="cannot be copied: .* If another was promoted meanwhile, run again"):
        run(promoted, tmp_path / "out", folder=str(tmp_path / "gone"))


def test_a_recipe_cannot_write_it() -> None:
    assert "champion" in STEPS and "champion" not in WRITABLE_STEPS
