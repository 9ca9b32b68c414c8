"""The champion of a target: what is kept of it, and what is left of it when something breaks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ioptim import champions
from ioptim.champions import Champion, crown, damage, read
from ioptim.core.artifact import Format, ModelArtifact, seal
from ioptim.errors import UnavailableError


def model(folder: Path, content: str) -> ModelArtifact:
    folder.mkdir()
    (folder / "m").write_text(content)
    return seal(ModelArtifact(path=folder, format=Format.ONNX, entry="m", facts={"runtime": "onnxruntime"}))


def champion(home: Path, made: ModelArtifact, run_id: str = "run-1") -> Champion:
    return Champion(
        folder=champions.place(home, "r", "cpu") / made.digest,
        recipe="r",
        target="cpu",
        run_id=run_id,
        made_by="compile",
        digest=made.digest,
        format=made.format,
        runtime="onnxruntime",
        hardware="here",
        promoted="2026-01-01T00:00:00.000+00:00",
    )


def crowned(tmp_path: Path, content: str, run_id: str = "run-1") -> Champion:
    made = model(tmp_path / content, content)
    crown(champion(tmp_path, made, run_id), made)
    found = read(tmp_path, "r", "cpu")
    assert found is not None
    return found


def test_it_is_a_copy_with_the_seal_of_what_was_promoted(tmp_path: Path) -> None:
    found = crowned(tmp_path, "a")
    assert found.run_id == "run-1" and (found.folder / "m").read_text() == "a"
    assert damage(found.folder, found.digest) == ""
    assert not (found.folder / "m").samefile(tmp_path / "a" / "m")


def test_there_is_none_before_one_was_promoted(tmp_path: Path) -> None:
    assert read(tmp_path, "r", "cpu") is None
    assert not (tmp_path / "champions").exists()


def test_the_one_before_the_last_is_removed(tmp_path: Path) -> None:
    first, second = crowned(tmp_path, "a"), crowned(tmp_path, "b", "run-2")
    assert second.run_id == "run-2"
    assert first.folder.exists() and second.folder.exists(), "a run that began with the first may be under way"
    crowned(tmp_path, "c", "run-3")
    assert not first.folder.exists() and second.folder.exists()


def test_the_same_model_of_another_run_changes_the_record_alone(tmp_path: Path) -> None:
    first = crowned(tmp_path, "a")
    inode = (first.folder / "m").stat().st_ino
    made = model(tmp_path / "again", "a")
    crown(champion(tmp_path, made, "run-2"), made)
    found = read(tmp_path, "r", "cpu")
    assert found is not None and (found.run_id, found.digest) == ("run-2", first.digest)
    assert (found.folder / "m").stat().st_ino == inode


@pytest.mark.parametrize("broken", ["copytree", "rename", "write_json"])
def test_one_that_breaks_off_leaves_the_champion_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    first = crowned(tmp_path, "a")
    other = model(tmp_path / "b", "b")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        owner = {"copytree": champions.shutil, "rename": os, "write_json": champions}[broken]
        patched.setattr(owner, broken, full)
        with pytest.raises(UnavailableError, match="cannot copy the champion to .*/champions/r/cpu: No space left on device"):
            crown(champion(tmp_path, other, "run-2"), other)
    assert read(tmp_path, "r", "cpu") == first
    assert damage(first.folder, first.digest) == ""
    assert crowned(tmp_path, "c", "run-3").run_id == "run-3"
    kept = {path.name for path in first.folder.parent.iterdir() if path.is_dir()}
    assert kept == {first.digest, model(tmp_path / "d", "c").digest}, "what was left half done is gone"


def test_a_model_that_is_not_what_it_was_sealed_as_is_not_promoted(tmp_path: Path) -> None:
    made = model(tmp_path / "a", "a")
    (made.path / "m").write_text("b")
    with pytest.raises(UnavailableError, match="cannot be promoted: m has other content than was sealed"):
        crown(champion(tmp_path, made), made)
    assert read(tmp_path, "r", "cpu") is None


def test_a_damaged_champion_is_mended_by_promoting_it_again(tmp_path: Path) -> None:
    found = crowned(tmp_path, "a")
    (found.folder / "m").write_text("b")
    assert damage(found.folder, found.digest) == "m has other content than was sealed"
    made = model(tmp_path / "again", "a")
    crown(champion(tmp_path, made), made)
    assert damage(found.folder, found.digest) == ""


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digest": "../../.."}', '{"digest": 5}'])
def test_a_record_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    record = crowned(tmp_path, "a").folder.parent / champions.RECORD
    record.write_text(text)
    with pytest.raises(UnavailableError, match=r"champion.json cannot be read \(\w+\). Promote a run again: ioptim promote RUN"):
        read(tmp_path, "r", "cpu")


def test_a_champion_whose_model_is_gone(tmp_path: Path) -> None:
    found = crowned(tmp_path, "a")
    (found.folder / "artifact.json").unlink()
    with pytest.raises(UnavailableError, match="the champion's model .* is gone"):
        read(tmp_path, "r", "cpu")


def test_another_model_in_its_place_is_damage(tmp_path: Path) -> None:
    found = crowned(tmp_path, "a")
    other = model(tmp_path / "b", "b")
    assert damage(other.path, found.digest) == f"it is {other.digest[:12]}, not {found.digest[:12]}"
    assert "is not a sealed artifact" in damage(tmp_path / "nowhere", found.digest)
