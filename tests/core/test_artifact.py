from __future__ import annotations

from pathlib import Path

import pytest

from ioptim.core.artifact import Format, ModelArtifact, open_artifact, seal, verify
from ioptim.errors import StepError


def sealed(folder: Path, content: bytes = b"weights") -> ModelArtifact:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(content)
    (folder / "tokenizer.json").write_text("{}")
    return seal(ModelArtifact(path=folder, format=Format.ONNX, entry="model.onnx", assets=("tokenizer.json",), facts={"labels": ["a"]}))


def test_what_is_sealed_opens_equal_and_verifies(tmp_path: Path) -> None:
    model = sealed(tmp_path / "a")
    assert open_artifact(tmp_path / "a") == model
    assert verify(model) == []
    assert model.size_bytes == 7  # without the tokenizer


def test_the_digest_is_of_content_alone(tmp_path: Path) -> None:
    first, second = sealed(tmp_path / "a"), sealed(tmp_path / "b")
    assert first.digest == second.digest
    assert sealed(tmp_path / "c", b"other").digest != first.digest


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "model.onnx").write_bytes(b"weighty"), "model.onnx has other content than was sealed"),
        (lambda p: (p / "model.onnx").write_bytes(b"w"), "model.onnx has 1 bytes, sealed with 7"),
        (lambda p: (p / "model.onnx").unlink(), "model.onnx is missing"),
        (lambda p: (p / "more").touch(), "more was added after sealing"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, message: str) -> None:
    model = sealed(tmp_path / "a")
    damage(tmp_path / "a")
    assert verify(model) == [message]


def test_an_entry_must_exist_and_links_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    with pytest.raises(StepError, match=r"names 'model.onnx' as its entry, but its files are \[\]"):
        seal(ModelArtifact(path=folder, format=Format.ONNX, entry="model.onnx"))
    (folder / "model.onnx").symlink_to("/etc/hostname")
    with pytest.raises(StepError, match="is a link or a special file"):
        seal(ModelArtifact(path=folder, format=Format.ONNX, entry="model.onnx"))
    with pytest.raises(StepError, match="not a sealed artifact"):
        open_artifact(folder)
